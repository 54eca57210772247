// What every application does: connect, subscribe, publish, ask who is there and what was.

import { ask, becomes, by, check, connected, publish, refused, subscribed, transport, upTo, watch } from '../stage.mjs';

// Connects `count` clients of these claims.
const clients = (count, claims) => Promise.all(upTo(count).map(async () => connected(await by(claims))));

export default {
  async a_client_connects() {
    const ana = await by({ sub: 'ana' });
    const seen = watch(ana, 'connecting', 'connected', 'disconnected', 'error');
    ana.connect();
    await seen.next('connecting');
    const { client: id, transport: actual } = await seen.next('connected');
    check('the id of a connection is a UUID', /^[0-9a-f-]{36}$/.test(id), true);
    check('the transport', actual, transport);
    for (let round = 0; round < 5; round++) {
      ana.disconnect();
      check('a clean end', (await seen.next('disconnected')).code, 0);
      ana.connect();
      await seen.next('connecting');
      await seen.next('connected');
    }
    seen.quiet('no error in a loop of connects');
  },

  async publications_arrive() {
    const [ana, ben] = [await connected(await by({ sub: 'ana', info: { name: 'Ana' } })), (await clients(1, { sub: 'ben' }))[0]];
    const [heard, own] = [await subscribed(ben, 'news:x'), await subscribed(ana, 'news:x')];
    const [theirs, ours] = [watch(heard, 'publication'), watch(own, 'publication')];
    check('publish answers', await own.publish({ n: 1, text: 'grüß\nGott ✓' }), {});
    for (const seen of [theirs, ours]) {
      const { data, offset, info } = await seen.next('publication');
      check('the data', data, { n: 1, text: 'grüß\nGott ✓' });
      check('the offset', offset, 1);
      check('who it was', [info.user, info.connInfo], ['ana', { name: 'Ana' }]);
    }
    await publish('news:x', 2, 4);
    check('the server publishes too', await theirs.publications(3), [2, 3, 4]);
    await ana.publish('news:x', 'text');
    check('data is any JSON', (await theirs.publications(1, ({ data }) => data))[0], 'text');
    await refused('not every channel is open', 103, ana.publish('vault:x', {}));
    await refused('nor is every namespace there', 102, ana.publish('nowhere:x', {}));
    const closed = ana.newSubscription('vault:x');
    const end = watch(closed, 'unsubscribed');
    closed.subscribe();
    check('a refused subscription ends', (await end.next('unsubscribed')).code, 103);
  },

  async two_subscriptions_share_a_connection() {
    const [ana] = await clients(1, { sub: 'ana', orgs: ['acme'] });
    const [x, repo] = [await subscribed(ana, 'news:x'), await subscribed(ana, 'repo:acme/api')];
    const [seen, runs] = [watch(x, 'publication'), watch(repo, 'publication')];
    await publish('news:x', 1, 3);
    await ask('webhooks', { from: 1, to: 3 });
    check('one hears the server', await seen.publications(3), [1, 2, 3]);
    check('the other hears GitHub', await runs.publications(3, ({ data }) => data.data.runId), [1, 2, 3]);
    x.unsubscribe();
    await publish('news:x', 4, 5);
    await ask('webhooks', { from: 4, to: 4 });
    check('one goes on without the other', await runs.publications(1, ({ data }) => data.data.runId), [4]);
    seen.quiet('and the other hears nothing more');
  },

  async presence_is_exact() {
    const [one, two] = await clients(2, { sub: 'ana', info: { name: 'Ana' } });
    const subscriptions = [await subscribed(one, 'room:x'), await subscribed(two, 'room:x')];
    const { clients: there } = await subscriptions[0].presence();
    const ids = Object.keys(there);
    check('both are there', ids.length, 2);
    check('with their names', ids.map((id) => [there[id].user, there[id].connInfo, there[id].client === id]), [
      ['ana', { name: 'Ana' }, true],
      ['ana', { name: 'Ana' }, true],
    ]);
    check('two clients, one user', await subscriptions[1].presenceStats(), { numClients: 2, numUsers: 1 });
    subscriptions[1].unsubscribe();
    // Answered behind the unsubscribe.
    await becomes('one is gone', () => two.presenceStats('room:x'), { numClients: 1, numUsers: 1 });
    check('for the other too', await one.presenceStats('room:x'), { numClients: 1, numUsers: 1 });
    subscriptions[0].unsubscribe();
    for (let round = 0; round < 10; round++) {
      subscriptions[0].subscribe();
      await subscriptions[0].ready();
      check('one right after subscribing', (await one.presenceStats('room:x')).numClients, 1);
      subscriptions[0].unsubscribe();
      await becomes('none right after unsubscribing', () => one.presenceStats('room:x'), { numClients: 0, numUsers: 0 });
    }
    await refused('a channel may have no presence', 108, one.presence('news:x'));
  },

  async history_comes_in_pages() {
    const [ana] = await clients(1, { sub: 'ana' });
    const sub = await subscribed(ana, 'news:x');
    const { offset: top, epoch } = await publish('news:x', 1, 10);
    check('the server names the position', top, 10);
    const numbers = ({ publications }) => publications.map(({ data }) => data.n);
    const position = await sub.history({ limit: 0 });
    check('no limit is the position alone', position, { publications: [], offset: 10, epoch });
    let [since, seen, pages] = [{ offset: 0, epoch }, [], 0];
    for (;;) {
      const page = await sub.history({ limit: 3, since });
      check('every page names the top', [page.offset, page.epoch], [10, epoch]);
      if (page.publications.length === 0) break;
      pages += 1;
      seen.push(...numbers(page));
      since = { offset: page.publications.at(-1).offset, epoch };
    }
    check('forward', [seen, pages], [upTo(10), 4]);
    check('as much as a page may have', numbers(await ana.history('news:x', { limit: -1 })), upTo(8));
    check('the first', numbers(await ana.history('news:x', { limit: 2 })), [1, 2]);
    check('backward', numbers(await sub.history({ limit: 4, reverse: true })), [10, 9, 8, 7]);
    const before = { limit: 3, reverse: true, since: { offset: 7, epoch } };
    check('backward from there', numbers(await sub.history(before)), [6, 5, 4]);
    await refused('nothing is before the first', 107, sub.history({ limit: 3, reverse: true, since: { offset: 0, epoch } }));
    await refused('another epoch', 112, sub.history({ limit: 3, since: { offset: 1, epoch: 'other' } }));
    await refused('a channel may have no history', 108, ana.history('room:x', { limit: 1 }));
  },

  async joins_and_leaves_are_told() {
    const [ana, ben] = [(await clients(1, { sub: 'ana' }))[0], await connected(await by({ sub: 'ben', info: 7 }))];
    const here = ana.newSubscription('room:x', { joinLeave: true });
    const seen = watch(here, 'subscribed', 'join', 'leave');
    here.subscribe();
    await seen.next('subscribed');
    check('one hears oneself come', (await seen.next('join')).info.user, 'ana');
    const there = await subscribed(ben, 'room:x');
    const { info } = await seen.next('join');
    check('then the other', [info.user, info.connInfo], ['ben', 7]);
    there.unsubscribe();
    check('who leaves', (await seen.next('leave')).info, info);
    there.subscribe();
    check('comes back', (await seen.next('join')).info, info);
    ben.disconnect();
    check('and leaves by disconnecting', (await seen.next('leave')).info, info);
    const lobby = ana.newSubscription('lobby:x');
    const forced = watch(lobby, 'join');
    lobby.subscribe();
    const [cem] = await clients(1, { sub: 'cem' });
    await subscribed(cem, 'lobby:x');
    check('who may not ask is told where it is forced', (await forced.next('join')).info.user, 'ana');
    check('the other too', (await forced.next('join')).info.user, 'cem');
  },

  async calls_need_a_backend() {
    const [ana] = await clients(1, { sub: 'ana' });
    await refused('there is none', 108, ana.rpc('sum', { a: 1 }));
    check('the connection stays', ana.state, 'connected');
  },

  async a_message_that_is_too_long_is_the_end() {
    const [ana] = await clients(1, { sub: 'ana' });
    const sub = await subscribed(ana, 'news:x');
    const [seen, states] = [watch(sub, 'publication'), watch(ana, 'connecting', 'disconnected')];
    await sub.publish({ n: 1, text: 'x'.repeat(60_000) });
    check('up to the limit', await seen.publications(1), [1]);
    sub.publish({ n: 2, text: 'x'.repeat(70_000) }).catch(() => {});
    check('above it', (await states.next('disconnected')).code, 3);
    seen.quiet('it was not published');
  },

  async unsubscribing_may_race_connecting() {
    const [witness] = await clients(1, { sub: 'wim' });
    // In the third order both are sent. Posts may overtake each other, and no server could undo that.
    const orders = transport === 'websocket' ? 3 : 2;
    for (let round = 0; round < 20; round++) {
      const ana = await by({ sub: 'ana' });
      const sub = ana.newSubscription('room:race');
      const seen = watch(sub, 'subscribed');
      sub.subscribe();
      // Before the connect is sent, behind it, and behind the subscribe.
      if (round % orders === 1) ana.on('connecting', () => queueMicrotask(() => sub.unsubscribe()));
      if (round % orders === 2) ana.on('connected', () => sub.unsubscribe());
      ana.connect();
      if (round % orders === 0) sub.unsubscribe();
      await ana.ready();
      await becomes('nobody stays', () => ana.presenceStats('room:race'), { numClients: 0, numUsers: 0 });
      check('not for others either', (await witness.presenceStats('room:race')).numClients, 0);
      seen.quiet('what was taken back does not begin');
      sub.subscribe();
      await sub.ready();
      check('and can begin later', (await witness.presenceStats('room:race')).numClients, 1);
      ana.disconnect();
      const gone = async () => (await witness.presenceStats('room:race')).numClients === 0;
      for (let tries = 0; !(await gone()); tries++) if (tries === 1000) throw new Error('presence outlives its client');
    }
  },
};
