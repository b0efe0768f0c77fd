"""Runs of Inngest's SDKs: how what they say becomes runs of this engine.

Their requests (Inngest SDK protocol, "sync mode") begin in the application. It runs the handler at
once, and tells the server about each step by a *checkpoint*: the first one, `POST /v1/checkpoint`,
creates the run. What happens to it here:

* **Sync phase.** The run is RUNNING, generation 1, and its owner is `SYNC_OWNER`: it is executed in
  the application. `checkpoints.py` records what comes, first write wins, and answers once it is on
  disk. It holds the run as a `LiveRun` while there is something to do, and finds it again in the
  store after a while of silence or a restart. All checkpoints of one run take turns.
* **Going async.** A checkpoint with anything but finished steps hands the run over: a sleep or a
  wait suspends it (WAITING); a failed or planned step releases it (READY). From then on only
  this server executes it, and what the application still says is a repeat, or refused (409).
* **Re-entry.** The dispatcher claims a READY run, and `execution.py` sends its request into the
  application, as often as there is something to do: to find out what comes next (*discovery*), or
  to run one step (`x-inngest-step-id`), several at a time. Every reply is a list of ops, which
  become the same commands that an execution of our own SDK records. When only time or an event can
  help, the run is suspended.
* **The end.** `RunComplete` carries the response, or the reply is the response (SDKs differ);
  `/output` gives it to whoever has the token.

Ops become commands as follows (`commands.py`):

    StepRun, Step            StepDone
    StepError                StepRetry, and StepFailed when the tries are used up
    StepFailed               StepFailed
    Sleep                    Sleep
    WaitForEvent             WaitForEvent, with `if` as pairs or as CEL that knows the trigger
    WaitForSignal            WaitForEvent for a signal (`LiveRun.open_signal`)
    StepPlanned              nothing: it is run by its id; lost in a crash, it is discovered again
    DiscoveryRequest         nothing: the handler is entered once more
    RunComplete              Complete
    StepError of `complete`  StepRetry of the handler; when the tries are used up, Fail
    DeferAdd, DeferAbort     ignored: they ask for nothing now
    anything else            StepFailed "unsupported": the handler sees an error, and nothing hangs

Tries are counted per step, and for the handler since the last step that ended, by the number of
retries that the run began with. A failure is retried after Inngest's own table (`backoff.py`). An
application that cannot be reached is not a failed try: it is asked again for a long time.

The stored request is the event that began the run (`trigger.py`), as the SDK has sent it. Where it
is called back is that event's origin, and only an origin that this server trusts (`apps.py`).
"""

from __future__ import annotations

from typing import Final

SYNC_OWNER: Final = "inngest"
"""Who holds the lease of a run in its sync phase: whichever process serves the request."""
