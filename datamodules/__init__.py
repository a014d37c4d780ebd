"""Public `pl_prefopt.datamodules`."""

if __name__ != "pl_prefopt.datamodules":
    raise ImportError("import pl_prefopt.datamodules instead of datamodules: two copies of one class would not recognise each other")
