"""The contract of plug-ins and the registries that find them."""
