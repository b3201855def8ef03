"""``llamaman doctor``: what is wrong with an installation, each finding with its cure.

Read by the command line, which runs it where no manager answers, and by ``/api/doctor``, which runs the same
checks inside the manager. Nothing here changes anything that stays, and no check waits longer than some seconds.
"""

from llamaman.doctor.finding import Finding, Status, failed
from llamaman.doctor.live import Live, Person
from llamaman.doctor.run import diagnose, diagnose_environment

__all__ = ["Finding", "Live", "Person", "Status", "diagnose", "diagnose_environment", "failed"]
