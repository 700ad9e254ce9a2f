"""The flows: order, retries and placement of the stages; the only code that knows Prefect."""

from flows.messages import speak_in_prefect
from flows.server import end_with_worker

end_with_worker()
speak_in_prefect()
