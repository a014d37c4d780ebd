"""Public `pl_prefopt.callbacks`."""

if __name__ != "pl_prefopt.callbacks":
    raise ImportError("import pl_prefopt.callbacks instead of callbacks: two copies of one class would not recognise each other")
