from .cohort import verify_data as verify_data
from .listing import Verification as Verification
from .listing import VerifyOptions as VerifyOptions
