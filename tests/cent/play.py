"""Every method of the server API, as the stock client calls it, side by side with itself awaited."""

import asyncio
import os
import sys

import cent
from cent.exceptions import CentApiResponseError, CentUnauthorizedError

URL, KEY = sys.argv[1], os.environ["API_KEY"]
HERE = cent.StreamPosition


def requests(prefix):
    """A request for each method, and what must be true of its result."""
    one, many = f"{prefix}-one", [f"{prefix}-{n}" for n in range(3)]
    yield cent.PublishRequest(channel=one, data={"n": 0}), lambda r: r.offset == 1 and r.epoch
    for n in range(1, 10):
        yield cent.PublishRequest(channel=one, data={"n": n}, tags={"k": "v"}), lambda r, n=n: r.offset == n + 1
    yield cent.PublishRequest(channel=one, data=1, skip_history=True), lambda r: not r.offset
    key = cent.PublishRequest(channel=f"{prefix}-key", data=1, idempotency_key="k")
    yield key, lambda r: r.offset == 1
    yield key, lambda r: r.offset == 1
    yield (
        cent.BroadcastRequest(channels=many, data={"n": 1}, idempotency_key="b"),
        lambda r: [one.result.offset for one in r.responses] == [1, 1, 1],
    )
    yield cent.SubscribeRequest(user="nobody", channel=one), bool
    yield cent.UnsubscribeRequest(user="nobody", channel=one), bool
    yield cent.DisconnectRequest(user="nobody", whitelist=["x"], disconnect=cent.Disconnect(code=4000, reason="bye")), bool
    yield cent.RefreshRequest(user="nobody", expired=True), bool
    yield cent.PresenceRequest(channel=one), lambda r: r.presence == {}
    yield cent.PresenceStatsRequest(channel=one), lambda r: r.num_clients == 0 and r.num_users == 0
    yield (
        cent.HistoryRequest(channel=one, limit=-1),
        lambda r: [p.data["n"] for p in r.publications] == list(range(10)) and r.publications[1].tags == {"k": "v"},
    )
    yield cent.HistoryRequest(channel=one, limit=1, reverse=True), lambda r: r.publications[0].offset == 10
    yield cent.HistoryRequest(channel=one), lambda r: r.publications == [] and r.offset == 10
    yield (
        cent.HistoryRequest(channel=one, limit=2, since=HERE(offset=3, epoch="")),
        lambda r: [p.offset for p in r.publications] == [4, 5],
    )
    yield cent.HistoryRemoveRequest(channel=one), bool
    yield cent.HistoryRequest(channel=one, limit=10), lambda r: r.publications == [] and r.offset == 10
    yield cent.ChannelsRequest(pattern="*"), lambda r: r.channels == {}
    yield cent.InfoRequest(), lambda r: len(r.nodes) == 1 and r.nodes[0].uid and r.nodes[0].name
    yield cent.ConnectionsRequest(user="nobody", expression=""), lambda r: r.connections == {}
    yield cent.BlockUserRequest(user=f"{prefix}-user"), bool
    yield cent.UnblockUserRequest(user=f"{prefix}-user"), bool
    yield cent.RevokeTokenRequest(uid=f"{prefix}-token"), bool
    for parallel in (False, True):
        yield (
            cent.BatchRequest(
                requests=[
                    cent.PublishRequest(channel=many[0], data=1),
                    cent.PresenceRequest(channel=many[0]),
                    cent.PresenceStatsRequest(channel=many[0]),
                    cent.BroadcastRequest(channels=many, data=1),
                ],
                parallel=parallel,
            ),
            lambda r: r.replies[0].offset and r.replies[1].presence == {} and len(r.replies[3].responses) == 3,
        )


def call(client, request):
    return getattr(client, request.__api_method__)(request)


def check(request, result, expected):
    assert result is not None and expected(result), f"{request!r}: {result!r}"


def refused(request, error):
    assert (error.code, error.message) == (102, "unknown channel"), f"{request!r}: {error!r}"


UNKNOWN = [
    cent.PublishRequest(channel="undefined:channel", data=1),
    cent.PresenceRequest(channel="undefined:channel"),
    cent.HistoryRequest(channel="undefined:channel"),
    cent.SubscribeRequest(user="nobody", channel="undefined:channel"),
]


def by_itself():
    client = cent.Client(URL, api_key=KEY)
    for request, expected in requests("sync"):
        check(request, call(client, request), expected)
    for request in UNKNOWN:
        try:
            call(client, request)
        except CentApiResponseError as error:
            refused(request, error)
        else:
            raise AssertionError(f"{request!r} is not refused")
    try:
        cent.Client(URL, api_key="wrong").info(cent.InfoRequest())
    except CentUnauthorizedError:
        pass
    else:
        raise AssertionError("any key opens")


async def awaited():
    client = cent.AsyncClient(URL, api_key=KEY)
    for request, expected in requests("async"):
        check(request, await call(client, request), expected)
    for request in UNKNOWN:
        try:
            await call(client, request)
        except CentApiResponseError as error:
            refused(request, error)
        else:
            raise AssertionError(f"{request!r} is not refused")


by_itself()
asyncio.run(awaited())
