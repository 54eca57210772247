// The setup that the SDKs' own tests run against: no tokens, everything is open that is on.

import { ask, becomes, check, client, connected, publish, refused, subscribed, upTo, watch } from '../stage.mjs';

export default {
  async without_tokens_everything_that_is_on_is_open() {
    const [one, two] = [await connected(client()), await connected(client())];
    const subscriptions = [await subscribed(one, 'open'), await subscribed(two, 'open')];
    const seen = watch(subscriptions[1], 'subscribed', 'subscribing', 'publication');
    await subscriptions[0].publish({ n: 1 });
    await two.publish('open', { n: 2 });
    check('both publish', await seen.publications(2), [1, 2]);
    check('nobody twice is one user', await one.presenceStats('open'), { numClients: 2, numUsers: 1 });
    const { clients } = await two.presence('open');
    check('nobody has no name', Object.values(clients).map(({ user }) => user), ['', '']);
    const history = await one.history('open', { limit: -1 });
    check('history', history.publications.map(({ data }) => data.n), [1, 2]);
    await refused('no backend for calls', 108, one.rpc('sum', {}));
    for (let round = 0; round < 5; round++) {
      subscriptions[0].unsubscribe();
      await becomes('one less', async () => (await one.presenceStats('open')).numClients, 1);
      subscriptions[0].subscribe();
      await subscriptions[0].ready();
      check('one more', (await one.presenceStats('open')).numClients, 2);
    }
    for (const [channel, lost] of [['recovery:x', false], ['smallhistory:x', true]]) {
      const away = watch(await subscribed(one, channel), 'subscribed', 'subscribing', 'publication');
      await publish(channel, 1, 1);
      check('live', await away.publications(1), [1]);
      await ask('cut');
      await away.next('subscribing');
      await publish(channel, 2, 9);
      await ask('mend');
      const { wasRecovering, recovered } = await away.next('subscribed');
      check(`${channel} was away`, [wasRecovering, recovered], [true, !lost]);
      if (!lost) check('all of it', await away.publications(8), upTo(9, 2));
      await publish(channel, 10, 10);
      check('goes on', await away.publications(1), [10]);
    }
    const repo = one.newSubscription('repo:acme/api');
    const end = watch(repo, 'unsubscribed');
    repo.subscribe();
    check('but not repositories', (await end.next('unsubscribed')).code, 103);
  },
};
