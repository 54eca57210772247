"""Tokens that end, are renewed, are wrong, or are not given any more."""

import asyncio

import centrifuge

from stage import STATES, Seen, by, check, client, connected, follow, followed, publish, sign, within

# Seconds: the shortest life of a token that does not end before it is used on a busy machine.
SHORT = 3


def tokens(*sources):
    """Gives what the sources give, one after the other and the last again, and counts."""

    async def get(*_):
        get.asked += 1
        return await sources[min(get.asked, len(sources)) - 1]()

    get.asked = 0
    return get


def signed(claims, seconds=None):
    return lambda: sign(claims if seconds is None else {**claims, "exp": within(seconds)})


async def never():
    await asyncio.Event().wait()


async def nobody():
    raise centrifuge.UnauthorizedError


ANA = {"sub": "ana"}


async def a_connection_outlives_its_token():
    seen = Seen(*STATES)
    get_token = tokens(signed(ANA, SHORT), signed(ANA, 3600))
    ana = client(seen, get_token=get_token)
    await connected(ana)
    await seen.next("connecting")
    await seen.next("connected")
    _, heard, _ = await followed(ana, "news:x")
    ends = Seen("connecting")
    other = client(ends, get_token=tokens(signed(ANA, SHORT), never))
    await connected(other)
    await ends.next("connecting")
    check("expired", (await ends.next("connecting")).code, 3005)
    await publish("news:x", 1, 1)
    check("the subscription lives", await heard.publications(1), [1])
    check("asked once for each", get_token.asked, 2)
    seen.quiet("the same connection")


async def a_connection_that_is_not_renewed_ends():
    # It tries the old token once more, and reports that as an error.
    seen = Seen("connecting", "connected", "disconnected")
    get_token = tokens(signed(ANA, SHORT), never, signed(ANA))
    await client(seen, get_token=get_token).connect()
    await seen.next("connecting")
    first = (await seen.next("connected")).client
    check("expired", (await seen.next("connecting")).code, 3005)
    check("with a new token it comes back", (await seen.next("connected")).client == first, False)
    check("asked again", get_token.asked, 3)


async def an_expired_token_is_replaced():
    seen = Seen(*STATES)
    get_token = tokens(signed(ANA, 3600))
    await client(seen, token=await sign({**ANA, "exp": within(-10)}), get_token=get_token).connect()
    await seen.next("connecting")
    await seen.next("error")
    await seen.next("connected")
    check("asked once", get_token.asked, 1)


async def who_gets_no_token_stays_out():
    seen = Seen(*STATES)
    await client(seen, get_token=tokens(nobody)).connect()
    await seen.next("connecting")
    check("unauthorized", (await seen.next("disconnected")).code, 1)


async def a_wrong_token_is_the_end():
    for token in ("no token", await sign({"sub": 7})):
        seen = Seen("disconnected")
        await client(seen, token=token).connect()
        check("invalid", (await seen.next("disconnected")).code, 3500)


async def a_token_opens_one_channel():
    ana = await connected(await by(ANA))
    _, end = await follow(ana, "$news:x", names=("unsubscribed",))
    check("without one it stays closed", (await end.next("unsubscribed")).code, 103)
    broken = Seen("unsubscribed")
    sub = ana.new_subscription("$news:y", events=broken, token="broken")
    await sub.subscribe()
    check("with a broken one too", (await broken.next("unsubscribed")).code, 103)
    token = await sign({**ANA, "channel": "$news:z", "info": {"seat": 1}, "data": {"hello": 1}})
    sub, seen, begun = await followed(ana, "$news:z", token=token)
    check("with a good one it opens", begun.data, {"hello": 1})
    await publish("$news:z", 1, 1)
    check("and is heard", await seen.publications(1), [1])


async def a_subscription_outlives_its_token():
    ana = await connected(await by(ANA))
    claims = {**ANA, "channel": "$news:x"}
    get_token = tokens(signed(claims, SHORT), signed(claims, 3600))
    _, seen, _ = await followed(ana, "$news:x", get_token=get_token)
    late = {**ANA, "channel": "$news:y"}
    _, ends, _ = await followed(ana, "$news:y", get_token=tokens(signed(late, SHORT), never, signed(late)))
    check("the other is not renewed", (await ends.next("subscribing")).code, 2501)
    await ends.next("subscribed")
    await publish("$news:x", 1, 1)
    check("this one lives", await seen.publications(1), [1])
    check("asked once for each", get_token.asked, 2)
    seen.quiet("the same subscription")
