from .cohort import verify_data as verify_data
from .listing import summary as summary
from .listing import table as table
from .listing import to_json as to_json
