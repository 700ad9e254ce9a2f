"""The flows: order, retries and placement of the stages; the only code that knows Prefect."""

from flows.messages import speak_in_prefect

speak_in_prefect()
