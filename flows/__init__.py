"""The flows: order, retries and placement of the stages; the only code that knows Prefect."""
