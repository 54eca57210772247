"""What every application does: connect, subscribe, publish, ask who is there and what was."""

import asyncio
import re

from centrifuge import StreamPosition

from stage import (
    STATES, Seen, ask, becomes, by, check, client, connected, follow, followed, publish, refused, up_to,
)


async def a_client_connects():
    seen = Seen(*STATES)
    ana = await by({"sub": "ana"}, seen)
    for _ in range(5):
        await ana.connect()
        await seen.next("connecting")
        context = await seen.next("connected")
        check("the id is a UUID", bool(re.fullmatch("[0-9a-f-]{36}", context.client)), True)
        check("there is a version", bool(context.version), True)
        await ana.disconnect()
        check("a clean end", (await seen.next("disconnected")).code, 0)
    seen.quiet("no error")


async def publications_arrive():
    ana = await connected(await by({"sub": "ana", "info": {"name": "Ana"}}))
    ben = await connected(await by({"sub": "ben"}))
    _, theirs, _ = await followed(ben, "news:x")
    own, ours, _ = await followed(ana, "news:x")
    await own.publish({"n": 1, "text": "grüß\nGott ✓"})
    for seen in (theirs, ours):
        pub = (await seen.next("publication")).pub
        check("the data", pub.data, {"n": 1, "text": "grüß\nGott ✓"})
        check("the offset", pub.offset, 1)
        check("who it was", [pub.info.user, pub.info.conn_info], ["ana", {"name": "Ana"}])
    await publish("news:x", 2, 4)
    check("the server publishes too", await theirs.publications(3), [2, 3, 4])
    await refused("not every channel is open", 103, ana.publish("vault:x", {}))
    await refused("nor is every namespace there", 102, ana.publish("nowhere:x", {}))
    _, end = await follow(ana, "vault:x", names=("unsubscribed",))
    check("a refused subscription ends", (await end.next("unsubscribed")).code, 103)


async def two_subscriptions_share_a_connection():
    ana = await connected(await by({"sub": "ana", "orgs": ["acme"]}))
    x, seen, _ = await followed(ana, "news:x")
    _, runs, _ = await followed(ana, "repo:acme/api")
    run = lambda context: context.pub.data["data"]["runId"]
    await publish("news:x", 1, 3)
    await ask("webhooks", **{"from": 1, "to": 3})
    check("one hears the server", await seen.publications(3), [1, 2, 3])
    check("the other hears GitHub", await runs.publications(3, run), [1, 2, 3])
    await x.unsubscribe()
    await seen.next("unsubscribed")
    await publish("news:x", 4, 5)
    await ask("webhooks", **{"from": 4, "to": 4})
    check("one goes on without the other", await runs.publications(1, run), [4])
    seen.quiet("and the other hears nothing more")


async def presence_is_exact():
    one, two = [await connected(await by({"sub": "ana", "info": {"name": "Ana"}})) for _ in range(2)]
    subs = [(await followed(each, "room:x"))[0] for each in (one, two)]
    there = (await subs[0].presence()).clients
    check("both are there", len(there), 2)
    names = [(c.user, c.conn_info, c.client == id) for id, c in there.items()]
    check("with their names", names, [("ana", {"name": "Ana"}, True)] * 2)

    async def counts():
        stats = await one.presence_stats("room:x")
        return (stats.num_clients, stats.num_users)

    check("two clients, one user", await counts(), (2, 1))
    await subs[1].unsubscribe()
    await becomes("one is gone", counts, (1, 1))
    for _ in range(10):
        await subs[0].unsubscribe()
        check("none right after unsubscribing", await counts(), (0, 0))
        await subs[0].subscribe()
        await subs[0].ready()
        check("one right after subscribing", await counts(), (1, 1))
    await refused("a channel may have no presence", 108, one.presence("news:x"))


async def history_comes_in_pages():
    ana = await connected(await by({"sub": "ana"}))
    sub, _, _ = await followed(ana, "news:x")
    top = await publish("news:x", 1, 10)
    numbers = lambda page: [pub.data["n"] for pub in page.publications]
    position = await sub.history(limit=0)
    check("no limit is the position alone", (numbers(position), position.offset), ([], 10))
    check("the epoch is the server's", position.epoch, top["epoch"])
    since, seen, pages = StreamPosition(0, position.epoch), [], 0
    while True:
        page = await sub.history(limit=3, since=since)
        if not page.publications:
            break
        pages += 1
        seen += numbers(page)
        since = StreamPosition(page.publications[-1].offset, page.epoch)
    check("forward", (seen, pages), (up_to(10), 4))
    check("as much as a page may have", numbers(await ana.history("news:x", limit=-1)), up_to(8))
    check("backward", numbers(await sub.history(limit=4, reverse=True)), [10, 9, 8, 7])
    other = StreamPosition(1, "other")
    await refused("another epoch", 112, sub.history(limit=3, since=other))
    await refused("a channel may have no history", 108, ana.history("room:x", limit=1))


async def joins_and_leaves_are_told():
    ana = await connected(await by({"sub": "ana"}))
    ben = await connected(await by({"sub": "ben", "info": 7}))
    _, seen = await follow(ana, "room:x", names=("subscribed", "join", "leave"), join_leave=True)
    await seen.next("subscribed")
    check("one hears oneself come", (await seen.next("join")).info.user, "ana")
    there, _, _ = await followed(ben, "room:x")
    info = (await seen.next("join")).info
    check("then the other", (info.user, info.conn_info), ("ben", 7))
    await there.unsubscribe()
    check("who leaves", (await seen.next("leave")).info, info)
    await there.subscribe()
    check("comes back", (await seen.next("join")).info, info)
    await ben.disconnect()
    check("and leaves by disconnecting", (await seen.next("leave")).info, info)


async def calls_need_a_backend():
    ana = await connected(await by({"sub": "ana"}))
    await refused("there is none", 108, ana.rpc("sum", {"a": 1}))


async def unsubscribing_may_race_connecting():
    witness = await connected(await by({"sub": "wim"}))
    count = lambda one: one.presence_stats("room:race")
    for turn in range(10):
        ana = await by({"sub": "ana"})
        sub, _ = await follow(ana, "room:race")
        connecting = asyncio.create_task(ana.connect())
        if turn % 2:
            await connecting
        await sub.unsubscribe()
        await connecting
        await ana.ready()
        check("nobody stays", (await count(ana)).num_clients, 0)
        await sub.subscribe()
        await sub.ready()
        check("and can begin later", (await count(witness)).num_clients, 1)
        await ana.disconnect()

        async def left():
            return (await count(witness)).num_clients

        await becomes("and is gone with its client", left, 0)


async def without_tokens_everything_that_is_on_is_open():
    one, two = await connected(client()), await connected(client())
    sub, _, _ = await followed(one, "open")
    _, seen, _ = await followed(two, "open")
    await sub.publish({"n": 1})
    await two.publish("open", {"n": 2})
    check("both publish", await seen.publications(2), [1, 2])
    stats = await one.presence_stats("open")
    check("nobody twice is one user", (stats.num_clients, stats.num_users), (2, 1))
    history = await one.history("open", limit=-1)
    check("history", [pub.data["n"] for pub in history.publications], [1, 2])
    await refused("no backend for calls", 108, one.rpc("sum", {}))
