"""Every method in every host."""

from functools import cache

import pytest
from ignite.engine import create_supervised_trainer

from cggm import BalanceHandler
from cggm.methods import method_names
from tests.cggm.contract_hosts import HOSTS, Session, bare_loop
from tests.cggm.contract_runs import near

every_method = pytest.mark.parametrize("name", method_names())
expected = cache(bare_loop)


@every_method
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("host", HOSTS)
def test_trains_like_a_bare_loop(host, accumulation, name):
    found, loop = host(name, accumulation), expected(name, accumulation)
    assert near(found.network.state_dict(), loop.network.state_dict())
    assert found.balancer.readings.keys() == loop.balancer.readings.keys()
    if name != "Balancer":  # joint training reads nothing
        assert near(found.balancer.readings, loop.balancer.readings)


@every_method
def test_an_engine_that_never_calls_the_balancer_is_an_error(name):
    session = Session(name)
    session.balancer.bind(session.network)
    engine = create_supervised_trainer(session.network, session.optimizer, session.loss)
    BalanceHandler(session.balancer).attach(engine)
    with pytest.raises(RuntimeError, match=rf"call {name} in every.*did not\. Pass `network=`"):
        engine.run(session.batches, max_epochs=1)
