"""How many of the measured parts each method takes beyond a joint step, see parts.py."""

Counts = dict[str, float]


def counts(modalities: int) -> dict[str, Counts]:
    """Parts that each configuration takes beyond the joint step of its network."""
    masked = 2**modalities - 2
    resting = -(modalities - 1) / modalities
    heads: Counts = {"heads": 1}
    # the fused gradient of the last layer is taken once, and differentiated once
    cggm = heads | {"loss": 2}
    through = heads | {"heads through": 1}
    update: Counts = {"update": 1}
    # those of pareto(), of its inputs and of its result
    pareto = through | {"encoders backward": 1, "gradients": 26}
    return {
        "plain": {},
        "joint_late": {},
        "agm": {"fusion forward": masked, "fusion backward": masked, "loss": modalities},
        "cggm": cggm,
        "cggm_direction": cggm,
        "cggm_ungated": cggm,
        "cggm_magnitude": heads | {"loss": 1},
        "cggm_paper": cggm,
        "cggm_released": heads | {"loss": 1},
        "constant": {},
        # a pass through the fusion for each modality, which leaves its parameters alone
        "dgl": {
            "fusion forward": modalities,
            "fusion backward": modalities,
            "loss": modalities,
            "features": 1,
        },
        # a teacher's head predicts, which is a third of what it takes to let it learn
        "g2d": {"teachers": 1, "heads": 1 / 3, "features": 1, "loss": modalities},
        "gblending": through,
        "gblending_offline": through,
        # gains, means and the choice; norms of gradients and of parameters
        "greedy_features": {"features": 3, "gradients": 2},
        "joint": heads | {"loss": 1},
        # modalities at rest run, and learn nothing; the mean input is a gradient in the last layer
        "mla": {"branches backward": resting, "loss": 1},
        "mmpareto": pareto,
        "mrd": {"features": 1},
        "mrd_uniform": {"features": 1},
        "mslr_dynamic": heads | update,
        "mslr_keep": update,
        "mslr_smooth": update,
        "ogm": heads,
        # the loss of each sample alone by each head; the extra pass is trained through
        "guided": through
        | {"loss": modalities + 1, "features": 1, "fusion forward": 1, "fusion backward": 1},
        "ogm_continuous": heads,
        # the deviation, its noise, and their product and sum
        "ogm_ge": heads | {"draws": 1, "gradients": 5},
        # the prediction from thinned features is the one that is differentiated
        "opm": heads | {"fusion forward": 1, "features": 1},
        # the fusion sees each modality alone; probabilities, and cosines to each class's prototype
        "passion": through
        | {
            "features": 1,
            "fusion forward": modalities,
            "fusion backward": modalities,
            "loss": 3 * modalities,
        },
        "pmr": {"features": 1},
        "qmf": {"loss": 2 * modalities},
        "random": {},
        # modalities at rest run, and learn nothing
        "reconboost": {"branches backward": resting},
        "redcore": through | {"features": 1},
        "relearning": {},
        "ume": {"loss": modalities},
        "umt": {"teachers": 1, "features": 1},
        "unimodal_losses": through,
    }
