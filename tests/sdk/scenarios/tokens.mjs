// Tokens that end, are renewed, are wrong, or are not given any more.

import { UnauthorizedError } from 'centrifuge';
import { by, check, client, connected, publish, sign, subscribed, watch, within } from '../stage.mjs';

const STATES = ['connecting', 'connected', 'disconnected'];
const SUBSCRIPTION = ['subscribing', 'subscribed', 'unsubscribed', 'publication'];

// Seconds: the shortest life of a token that does not end before it is used on a busy machine.
const SHORT = 3;

// Gives what the sources give, one after the other and the last again, and counts.
function tokens(...sources) {
  const get = async (context) => {
    get.asked.push(context?.channel);
    return sources[Math.min(get.asked.length, sources.length) - 1]();
  };
  get.asked = [];
  return get;
}

const never = () => new Promise(() => {});
const nobody = () => {
  throw new UnauthorizedError('gone');
};

export default {
  async a_connection_outlives_its_token() {
    const first = await sign({ sub: 'ana', exp: within(SHORT) });
    const getToken = tokens(() => first, () => sign({ sub: 'ana', exp: within(3600) }));
    const ana = client({ getToken });
    const seen = watch(ana, ...STATES, 'error');
    ana.connect();
    await seen.next('connecting');
    await seen.next('connected');
    const sub = await subscribed(ana, 'news:x');
    const heard = watch(sub, ...SUBSCRIPTION);
    // The same token on a connection that is not renewed shows when it ends.
    const other = await connected(client({ getToken: tokens(() => first, never) }));
    check('expired', (await watch(other, 'connecting').next('connecting')).code, 3005);
    await publish('news:x', 1, 1);
    check('the subscription lives', await heard.publications(1), [1]);
    check('asked once for each', getToken.asked.length, 2);
    seen.quiet('the same connection');
  },

  async a_connection_that_is_not_renewed_ends() {
    const getToken = tokens(() => sign({ sub: 'ana', exp: within(SHORT) }), never, () => sign({ sub: 'ana' }));
    const ana = client({ getToken });
    const seen = watch(ana, ...STATES);
    ana.connect();
    await seen.next('connecting');
    const { client: id } = await seen.next('connected');
    check('expired', (await seen.next('connecting')).code, 3005);
    check('with a new token it comes back', (await seen.next('connected')).client === id, false);
    check('asked again', getToken.asked.length, 3);
  },

  async an_expired_token_is_replaced() {
    const getToken = tokens(() => sign({ sub: 'ana', exp: within(3600) }));
    const ana = client({ token: await sign({ sub: 'ana', exp: within(-10) }), getToken });
    const seen = watch(ana, ...STATES, 'error');
    ana.connect();
    await seen.next('connecting');
    check('expired', (await seen.next('error')).error.code, 109);
    await seen.next('connected');
    check('asked once', getToken.asked.length, 1);
  },

  async who_gets_no_token_stays_out() {
    for (const getToken of [tokens(nobody), tokens(() => null)]) {
      const ana = client({ getToken });
      const seen = watch(ana, ...STATES);
      ana.connect();
      await seen.next('connecting');
      check('unauthorized', (await seen.next('disconnected')).code, 1);
    }
    const leaving = client({ getToken: tokens(() => sign({ sub: 'ana', exp: within(SHORT) }), nobody) });
    const seen = watch(leaving, ...STATES);
    leaving.connect();
    await seen.next('connecting');
    await seen.next('connected');
    check('nor when it is not renewed', (await seen.next('disconnected')).code, 1);
  },

  async a_wrong_token_is_the_end() {
    const good = await sign({ sub: 'ana' });
    const parts = good.split('.');
    const forged = [parts[0], Buffer.from('{"sub":"root"}').toString('base64url'), parts[2]].join('.');
    const foreign = await sign({ sub: 'ana', channel: 'news:x' });
    const unsigned = `${Buffer.from('{"alg":"none"}').toString('base64url')}.${parts[1]}.`;
    for (const token of ['no token at all', forged, foreign, unsigned]) {
      const ana = client({ token });
      const seen = watch(ana, ...STATES);
      ana.connect();
      await seen.next('connecting');
      const { code, reason } = await seen.next('disconnected');
      check('invalid', [code, reason], [3500, 'invalid token']);
    }
    const nobody = client();
    const seen = watch(nobody, ...STATES);
    nobody.connect();
    await seen.next('connecting');
    check('none is a bad request', (await seen.next('disconnected')).code, 3501);
    const swapped = client({ getToken: tokens(() => sign({ sub: 'ana', exp: within(SHORT) }), () => sign({ sub: 'ben' })) });
    const states = watch(swapped, ...STATES);
    swapped.connect();
    await states.next('connecting');
    await states.next('connected');
    check('renewing is not becoming another', (await states.next('disconnected')).code, 3500);
  },

  async a_token_opens_one_channel() {
    const ana = await connected(await by({ sub: 'ana' }));
    const getToken = tokens(() => sign({ sub: 'ana', channel: '$vault:x', info: { seat: 1 }, data: { hello: 1 } }));
    const sub = ana.newSubscription('$vault:x', { getToken });
    const seen = watch(sub, ...SUBSCRIPTION);
    sub.subscribe();
    await seen.next('subscribing');
    check('with its data', (await seen.next('subscribed')).data, { hello: 1 });
    check('asked for this channel', getToken.asked, ['$vault:x']);
    const { clients } = await sub.presence();
    check('and its info', Object.values(clients).map(({ chanInfo }) => chanInfo), [{ seat: 1 }]);
    const locked = ana.newSubscription('$vault:y');
    const end = watch(locked, 'unsubscribed');
    locked.subscribe();
    check('without one it stays closed', (await end.next('unsubscribed')).code, 103);
    const broken = ana.newSubscription('$vault:z', { token: `${await sign({ sub: 'ana', channel: '$vault:z' })}x` });
    const refusal = watch(broken, 'unsubscribed');
    broken.subscribe();
    check('with a broken one too', (await refusal.next('unsubscribed')).code, 103);
    const nothing = ana.newSubscription('$vault:w', { getToken: tokens(nobody) });
    const without = watch(nothing, 'unsubscribed');
    nothing.subscribe();
    check('nor if none is given', (await without.next('unsubscribed')).code, 1);
    for (const claims of [{ sub: 'ana', channel: '$vault:x' }, { sub: 'ben', channel: '$vault:q' }]) {
      const ana = await connected(await by({ sub: 'ana' }));
      const states = watch(ana, ...STATES);
      ana.newSubscription('$vault:q', { token: await sign(claims) }).subscribe();
      check('another channel or user is the end', (await states.next('disconnected')).code, 3500);
    }
  },

  async a_subscription_outlives_its_token() {
    const ana = await connected(await by({ sub: 'ana' }));
    const states = watch(ana, ...STATES);
    const late = await sign({ sub: 'ana', channel: '$vault:x', exp: within(-5) });
    const short = await sign({ sub: 'ana', channel: '$vault:x', exp: within(SHORT) });
    const getToken = tokens(
      () => late,
      () => short,
      () => sign({ sub: 'ana', channel: '$vault:x', exp: within(3600) }),
    );
    const sub = ana.newSubscription('$vault:x', { getToken, minResubscribeDelay: 10, maxResubscribeDelay: 100 });
    const seen = watch(sub, ...SUBSCRIPTION, 'error');
    sub.subscribe();
    await seen.next('subscribing');
    check('an expired one is replaced', (await seen.next('error')).error.code, 109);
    await seen.next('subscribed');
    // The same token on a subscription that is not renewed shows when it ends.
    const ben = await connected(await by({ sub: 'ana' }));
    const other = await subscribed(ben, '$vault:x', { getToken: tokens(() => short, never) });
    check('expired', (await watch(other, 'subscribing').next('subscribing')).code, 2501);
    await publish('$vault:x', 1, 1);
    check('the subscription lives', await seen.publications(1), [1]);
    check('asked once for each', getToken.asked, ['$vault:x', '$vault:x', '$vault:x']);
    seen.quiet('the same subscription');
    states.quiet('the same connection');
  },

  async a_subscription_that_is_not_renewed_ends() {
    const ana = await connected(await by({ sub: 'ana' }));
    const states = watch(ana, ...STATES);
    const token = (seconds) => () => sign({ sub: 'ana', channel: '$vault:x', exp: within(seconds) });
    const getToken = tokens(token(SHORT), never, token(3600));
    const sub = ana.newSubscription('$vault:x', { getToken, minResubscribeDelay: 10, maxResubscribeDelay: 100 });
    const seen = watch(sub, ...SUBSCRIPTION);
    sub.subscribe();
    await seen.next('subscribing');
    await seen.next('subscribed');
    await publish('$vault:x', 1, 1);
    check('live', await seen.publications(1), [1]);
    check('expired', (await seen.next('subscribing')).code, 2501);
    await publish('$vault:x', 2, 2);
    check('with a new token it comes back', (await seen.next('subscribed')).recovered, true);
    check('and misses nothing', await seen.publications(1), [2]);
    states.quiet('the connection stays');
  },

  async a_subscription_is_not_renewed_for_another_channel() {
    const ana = await connected(await by({ sub: 'ana' }));
    const states = watch(ana, ...STATES);
    const token = (channel, seconds) => () => sign({ sub: 'ana', channel, exp: within(seconds) });
    const getToken = tokens(token('$vault:x', SHORT), token('$vault:y', 3600));
    ana.newSubscription('$vault:x', { getToken }).subscribe();
    check('invalid', (await states.next('disconnected')).code, 3500);
    check('when it was renewed', getToken.asked.length, 2);
  },
};
