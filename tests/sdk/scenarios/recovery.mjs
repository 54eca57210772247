// What a client that was away finds when it comes back: everything in order and once, or a word
// that something is missing.

import { ask, by, bystander, check, client, connected, publish, sign, subscribed, upTo, watch } from '../stage.mjs';

const EVENTS = ['subscribed', 'subscribing', 'unsubscribed', 'publication'];
const run = ({ data }) => data.data.runId;

// Transport closed, in the SDK's own codes; and no ping.
const CUT = 1;
const NO_PING = 2;

// What a subscription says of its recovery.
const outcome = ({ wasRecovering, recovered, hasRecoveredPublications }) => [wasRecovering, recovered, hasRecoveredPublications];
const ALL = [true, true, true];
const NOTHING_MISSED = [true, true, false];
const LOST = [true, false, false];

// Watches a subscription from its beginning.
async function follow(client, channel, options = {}) {
  const sub = client.newSubscription(channel, { minResubscribeDelay: 10, maxResubscribeDelay: 100, ...options });
  const seen = watch(sub, ...EVENTS);
  sub.subscribe();
  await seen.next('subscribing');
  const begun = await seen.next('subscribed');
  return { sub, seen, begun };
}

// Numbers while the connection breaks after so many bytes: exactly 1 to 60, however it was cut.
async function streamThroughCuts(seen, bytes, add, read) {
  await add(1, 5);
  check('live', await seen.publications(5, read), upTo(5));
  for (const first of [6, 21, 41]) {
    await ask('cut_after', { bytes });
    const last = first === 6 ? 20 : first + 19;
    const adding = add(first, last);
    const found = [];
    let [again, context] = [0];
    while (found.length < last - first + 1) {
      const [name, event] = await seen.any();
      if (name === 'publication') found.push(read(event));
      if (name === 'subscribed') [again, context] = [again + 1, event];
    }
    await adding;
    check('nothing missing, nothing twice', found, upTo(last, first));
    check('recovered once', [again, context.wasRecovering, context.recovered], [1, true, true]);
  }
  seen.quiet('nothing more');
}

// `code` is what a client is told when the server goes.
async function outlivesRestarts(restarts, code) {
  const ana = await connected(await by({ sub: 'ana' }));
  const states = watch(ana, 'connecting', 'connected', 'disconnected');
  const { seen, begun } = await follow(ana, 'news:x');
  const { epoch } = begun.streamPosition;
  let last = 0;
  for (let round = 0; round < restarts; round++) {
    await publish('news:x', last + 1, last + 3);
    check('live', await seen.publications(3), upTo(last + 3, last + 1));
    await ask('cut');
    check('a cut is no word of the server', (await states.next('connecting')).code, CUT);
    await seen.next('subscribing');
    await publish('news:x', last + 4, last + 6);
    await ask('restart');
    await publish('news:x', last + 7, last + 9);
    await ask('mend');
    await states.next('connected');
    const back = await seen.next('subscribed');
    check('recovered over a restart', [outcome(back), back.streamPosition], [ALL, { offset: last + 3, epoch }]);
    check('from before and after it', await seen.publications(6), upTo(last + 9, last + 4));
    // The client is there while it goes.
    const ending = ask('restart');
    check('the server goes', (await states.next('connecting')).code, code);
    await seen.next('subscribing');
    await ending;
    await states.next('connected');
    check('nothing was missed', outcome(await seen.next('subscribed')), NOTHING_MISSED);
    last += 9;
  }
  await publish('news:x', last + 1, last + 1);
  check('live again', await seen.publications(1), [last + 1]);
  seen.quiet('nothing twice');
}

export default {
  async webhooks_survive_a_cut() {
    const ana = await connected(await by({ sub: 'ana', orgs: ['acme'] }));
    const { seen, begun } = await follow(ana, 'repo:acme/api');
    check('always recoverable', [begun.recoverable, begun.positioned, outcome(begun)], [true, true, [false, false, false]]);
    await streamThroughCuts(seen, 3000, (from, to) => ask('webhooks', { from, to }), run);
    await ask('cut');
    await seen.next('subscribing');
    await ask('webhooks', { from: 61, to: 380 });
    await ask('mend');
    check('more than other channels replay', outcome(await seen.next('subscribed')), ALL);
    check('all of it', await seen.publications(320, run), upTo(380, 61));
  },

  async publications_survive_a_cut() {
    const ana = await connected(await by({ sub: 'ana' }));
    const { seen, begun } = await follow(ana, 'news:x');
    check('recoverable', [begun.recoverable, begun.positioned, begun.streamPosition.offset], [true, true, 0]);
    await streamThroughCuts(seen, 500, (from, to) => publish('news:x', from, to), ({ data }) => data.n);
  },

  async differences_come_out_whole() {
    const text = 'the same words in every publication, '.repeat(20);
    const tell = (from, to) => ask('publish', { channel: 'diff:x', from, to, text });
    const whole = ({ data }) => (data.text === text ? data.n : data);
    const [ana, ben] = [await connected(await by({ sub: 'ana' })), await connected(await by({ sub: 'ben' }))];
    await tell(1, 2);
    const some = watch(await subscribed(ana, 'diff:x', { delta: 'fossil' }), 'publication');
    const all = watch(await subscribed(ben, 'diff:x'), 'publication');
    for (const seen of [some, all]) seen.quiet('nothing yet');
    await tell(3, 20);
    for (const seen of [some, all]) check('whole, as differences or not', await seen.publications(18, whole), upTo(20, 3));
    await ask('cut');
    await tell(21, 30);
    await ask('mend');
    for (const seen of [some, all]) check('what was missed too', await seen.publications(10, whole), upTo(30, 21));
    await tell(31, 32);
    for (const seen of [some, all]) check('and live again', await seen.publications(2, whole), [31, 32]);
  },

  async a_returning_client_outlives_restarts() {
    await outlivesRestarts(3, 3001);
  },

  async a_returning_client_outlives_crashes() {
    await outlivesRestarts(2, CUT);
  },

  async a_silent_network_is_noticed() {
    const ana = client({ token: await sign({ sub: 'ana' }), maxServerPingDelay: 500 });
    const states = watch(ana, 'connecting', 'connected', 'disconnected');
    ana.connect();
    await states.next('connecting');
    await states.next('connected');
    const { seen } = await follow(ana, 'news:x');
    await publish('news:x', 1, 2);
    check('live', await seen.publications(2), [1, 2]);
    await ask('silence');
    await publish('news:x', 3, 5);
    check('no ping', (await states.next('connecting')).code, NO_PING);
    await seen.next('subscribing');
    await ask('mend');
    await states.next('connected');
    check('recovered', outcome(await seen.next('subscribed')), ALL);
    check('nothing missing', await seen.publications(3), [3, 4, 5]);
    seen.quiet('nothing twice');
  },

  async who_missed_too_much_is_told() {
    const ana = await connected(await by({ sub: 'ana' }));
    const { seen, begun } = await follow(ana, 'brief:x');
    const { epoch } = begun.streamPosition;
    await publish('brief:x', 1, 2);
    check('live', await seen.publications(2), [1, 2]);
    await ask('cut');
    await seen.next('subscribing');
    await publish('brief:x', 3, 4);
    await ask('mend');
    check('as many as are kept', outcome(await seen.next('subscribed')), ALL);
    check('all of them', await seen.publications(2), [3, 4]);
    await ask('cut');
    await seen.next('subscribing');
    await publish('brief:x', 5, 7);
    await ask('mend');
    const lost = await seen.next('subscribed');
    check('one more is too much', [outcome(lost), lost.streamPosition], [LOST, { offset: 7, epoch }]);
    await publish('brief:x', 8, 9);
    check('the channel goes on', await seen.publications(2), [8, 9]);
    seen.quiet('without what was lost');
    // This one keeps more than is replayed.
    const { seen: kept } = await follow(ana, 'news:x');
    for (const [from, to, expected] of [[1, 50, ALL], [51, 101, LOST]]) {
      await ask('cut');
      await kept.next('subscribing');
      await publish('news:x', from, to);
      await ask('mend');
      check(`${to - from + 1} were missed`, outcome(await kept.next('subscribed')), expected);
      if (expected === ALL) check('all of them', await kept.publications(50), upTo(50));
    }
    await publish('news:x', 102, 102);
    check('this one goes on too', await kept.publications(1), [102]);
  },

  async who_unsubscribes_can_come_back() {
    const ana = await connected(await by({ sub: 'ana' }));
    const { sub, seen } = await follow(ana, 'news:x');
    await publish('news:x', 1, 2);
    check('live', await seen.publications(2), [1, 2]);
    sub.unsubscribe();
    await seen.next('unsubscribed');
    await publish('news:x', 3, 5);
    sub.subscribe();
    await seen.next('subscribing');
    check('recovered', outcome(await seen.next('subscribed')), ALL);
    check('what was missed', await seen.publications(3), [3, 4, 5]);
    const ben = await connected(await by({ sub: 'ben' }));
    const { epoch } = await sub.history({ limit: 0 });
    const { seen: later, begun } = await follow(ben, 'news:x', { since: { offset: 2, epoch } });
    check('one may begin in the middle', outcome(begun), ALL);
    check('behind that position', await later.publications(3), [3, 4, 5]);
    const { begun: other } = await follow(ben, 'news:y', { since: { offset: 2, epoch: 'other' } });
    check('not in another history', outcome(other), LOST);
  },

  async state_and_stream_fit_together() {
    const ana = await connected(await by({ sub: 'ana' }));
    await publish('news:x', 1, 3);
    const { seen, begun } = await follow(ana, 'news:x', { getState: async () => ({ offset: 0, epoch: '' }) });
    check('everything from the first', outcome(begun), ALL);
    check('in order', await seen.publications(3), [1, 2, 3]);
    await publish('brief:x', 1, 5);
    let asked = 0;
    const getState = async () => {
      asked += 1;
      if (asked === 1) return { offset: 0, epoch: '' };
      const { offset, epoch } = await ana.history('brief:x', { limit: 0 });
      return { offset: offset - 1, epoch };
    };
    const { seen: rest, begun: second } = await follow(ana, 'brief:x', { getState });
    check('a position that is gone asks again', [asked, outcome(second)], [2, ALL]);
    check('behind the state', await rest.publications(1), [5]);
    await ask('cut');
    await rest.next('subscribing');
    await publish('brief:x', 6, 8);
    await ask('mend');
    const third = await rest.next('subscribed');
    check('who missed too much loads the state again', [asked, outcome(third)], [3, ALL]);
    check('and goes on behind it', await rest.publications(1), [8]);
    rest.quiet('no more');
  },

  async the_server_subscribes_and_recovers() {
    const claims = { sub: 'ana', channels: ['news:a'], subs: { 'news:b': { data: { hello: 1 } } } };
    const ana = await by(claims);
    const seen = watch(ana, 'subscribed', 'subscribing', 'unsubscribed', 'publication');
    ana.connect();
    const begun = [await seen.next('subscribed'), await seen.next('subscribed')];
    const data = Object.fromEntries(begun.map((context) => [context.channel, context.data ?? null]));
    check('both begin', data, { 'news:a': null, 'news:b': { hello: 1 } });
    check('recoverable', begun.map((context) => context.recoverable), [true, true]);
    const where = ({ channel, data }) => `${channel} ${data.n}`;
    await publish('news:a', 1, 2);
    check('live', await seen.publications(2, where), ['news:a 1', 'news:a 2']);
    await publish('news:b', 1, 1);
    check('the other too', await seen.publications(1, where), ['news:b 1']);
    await ask('cut');
    const left = [await seen.next('subscribing'), await seen.next('subscribing')];
    check('both are left', left.map(({ channel }) => channel).sort(), ['news:a', 'news:b']);
    await publish('news:a', 3, 5);
    await publish('news:b', 2, 3);
    await ask('mend');
    const back = [await seen.next('subscribed'), await seen.next('subscribed')];
    check('both recover', back.map(outcome), [ALL, ALL]);
    const missed = await seen.publications(5, where);
    // Each channel's in their order; a sort that keeps it.
    missed.sort((a, b) => a.slice(0, 6).localeCompare(b.slice(0, 6)));
    check('each all of its own', missed, ['news:a 3', 'news:a 4', 'news:a 5', 'news:b 2', 'news:b 3']);
    seen.quiet('and nothing twice');
    const other = await by({ sub: 'ben', channels: ['nowhere:x'] }, bystander);
    const end = watch(other, 'disconnected');
    other.connect();
    check('a namespace that is not there', (await end.next('disconnected')).code, 102);
  },
};
