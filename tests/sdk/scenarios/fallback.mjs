// A client that knows three transports tries them in its order, and keeps to the one that opens.

import WebSocket from 'ws';
import { EventSource } from 'eventsource';
import { ask, check, clientBy, endpoint, proxy, publish, sign, subscribed, transport, watch } from '../stage.mjs';

const ORDER = ['websocket', 'http_stream', 'sse'];

export default {
  async blocked_transports_are_passed_over() {
    const tried = [];
    // Calls `Means` and notes what it was used for.
    const noted = (Means, name) => new Proxy(Means, {
      construct(target, args) {
        tried.push(name);
        return new target(...args);
      },
    });
    const fetchNoted = (url, options) => {
      if (url.endsWith('/http_stream')) tried.push('http_stream');
      return fetch(url, options);
    };
    const ana = clientBy(ORDER.map((name) => endpoint(proxy, name)), proxy, {
      token: await sign({ sub: 'ana' }),
      websocket: noted(WebSocket, 'websocket'),
      eventsource: noted(EventSource, 'sse'),
      fetch: fetchNoted,
    });
    const states = watch(ana, 'connected', 'disconnected');
    ana.connect();
    const path = ORDER.slice(0, ORDER.indexOf(transport) + 1);
    check('the one that opens', (await states.next('connected')).transport, transport);
    check('after those before it, in order', tried, path);
    const seen = watch(await subscribed(ana, 'news:x'), 'subscribed', 'publication');
    await publish('news:x', 1, 1);
    check('it carries events', await seen.publications(1), [1]);
    await ask('cut');
    await publish('news:x', 2, 3);
    await ask('mend');
    check('it stays', (await states.next('connected')).transport, transport);
    const others = tried.slice(path.length).filter((name) => name !== transport);
    check('without trying others again', others, []);
    check('recovered', (await seen.next('subscribed')).recovered, true);
    check('all of it', await seen.publications(2), [2, 3]);
    states.quiet('nothing else');
  },
};
