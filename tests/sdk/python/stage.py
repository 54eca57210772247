"""What scenarios are told with: clients of the stock Python SDK, what they saw, in order, and the
test that started this process, which does on request what a client cannot. The same words as in
../stage.mjs: requests go out on stdout and answers come in on stdin, a JSON value a line."""

import asyncio
import json
import os
import sys
import time

import centrifuge

# No event is waited for longer.
PATIENCE = 15

STAGE = json.loads(os.environ["CAMPANILE_STAGE"])


def say(line):
    print(json.dumps(line), flush=True)


_asking = asyncio.Lock()


async def ask(what, **details):
    """Asks the test to do something; returns when it is done."""
    async with _asking:
        say({"ask": what, **details})
        return json.loads(await asyncio.to_thread(sys.stdin.readline))


async def sign(claims):
    return await ask("token", claims=claims)


async def publish(channel, first, last):
    """The server publishes `{n}` for each number; gives the position of the last."""
    return await ask("publish", channel=channel, **{"from": first, "to": last})


def within(seconds):
    return int(time.time()) + seconds


def up_to(last, first=1):
    return list(range(first, last + 1))


def check(fact, actual, expected):
    """Must be so, and the test hears of it."""
    assert actual == expected, f"{fact}: {actual!r} instead of {expected!r}"
    say({"fact": fact, "value": True})


async def refused(fact, code, call):
    """Must fail with this code."""
    try:
        result = await call
    except centrifuge.ReplyError as error:
        return check(fact, error.code, code)
    raise AssertionError(f"{fact}: {result!r}")


class Seen:
    """The events of these names, in their order. A handler of clients and of subscriptions."""

    def __init__(self, *names):
        self._names = names
        self._queue = asyncio.Queue()

    def __getattr__(self, name):
        if not name.startswith("on_"):
            raise AttributeError(name)

        async def note(context):
            if name.removeprefix("on_") in self._names:
                self._queue.put_nowait((name.removeprefix("on_"), context))

        return note

    async def any(self):
        return await asyncio.wait_for(self._queue.get(), PATIENCE)

    async def next(self, name):
        """The next one, which must have this name."""
        actual, context = await self.any()
        assert actual == name, f"{actual} instead of {name}: {context}"
        return context

    async def publications(self, count, read=lambda context: context.pub.data["n"]):
        """What `read` finds in the next so many publications, and nothing else between them."""
        return [read(await self.next("publication")) for _ in range(count)]

    def quiet(self, fact):
        """Nothing more was seen so far."""
        check(fact, self._queue.qsize(), 0)


STATES = ("connecting", "connected", "disconnected", "error")
SUBSCRIPTION = ("subscribing", "subscribed", "unsubscribed", "publication")


def client(events=None, address=None, **options):
    """A client behind the proxy that can be cut."""
    url = f"ws://{address or STAGE['proxy']}/connection/websocket"
    delays = {"min_reconnect_delay": 0.01, "max_reconnect_delay": 0.1}
    return centrifuge.Client(url, events=events, proxy=None, **delays, **options)


async def by(claims, events=None):
    return client(events, token=await sign(claims))


async def connected(one):
    await one.connect()
    await one.ready(PATIENCE)
    return one


async def follow(one, channel, names=SUBSCRIPTION, **options):
    """Watches a subscription from its beginning."""
    seen = Seen(*names)
    delays = {"min_resubscribe_delay": 0.01, "max_resubscribe_delay": 0.1}
    sub = one.new_subscription(channel, events=seen, **delays, **options)
    await sub.subscribe()
    return sub, seen


async def followed(one, channel, **options):
    """The same; what it began with comes too."""
    sub, seen = await follow(one, channel, **options)
    await seen.next("subscribing")
    return sub, seen, await seen.next("subscribed")


async def becomes(fact, read, expected):
    """Must become so, soon."""
    actual = await read()
    for _ in range(1000):
        if actual == expected:
            break
        actual = await read()
    check(fact, actual, expected)


def play(scenario):
    """Runs one scenario; the last line says how it ended."""
    asyncio.run(scenario())
    say({"done": True})
    # The SDK's reader may still sit on its thread.
    sys.stdout.flush()
    os._exit(0)
