from .cohort import simulate_cohort as simulate_cohort
