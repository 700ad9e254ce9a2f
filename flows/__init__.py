"""The flows: order, retries and placement of the stages; the only code that knows Prefect."""

from flows.messages import speak_in_prefect
from flows.server import end_with_worker
from shards.memory import keep_freed_memory

end_with_worker()
keep_freed_memory()
speak_in_prefect()
