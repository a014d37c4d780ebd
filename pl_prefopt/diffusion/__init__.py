"""What diffusion and flow models share: noise processes, families of denoisers, timestep samplers, tiny models."""
