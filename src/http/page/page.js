// The page: who is signed in decides what is shown; one summary, one list of activity and one of
// repositories are read, and then the stream moves them. Nothing else asks while the stream lives,
// but a look at the counts now and then, which mostly answers 304.

import { Feed, Repos, skeleton } from './feed.js';
import { listen, rows } from './keys.js';
import { Stream } from './stream.js';

const by = (id) => document.getElementById(id);
const LOOK = 30_000;
// Until the first event there is no channel to follow, so the counts are looked at more often.
const LOOK_FOR_FIRST = 3_000;
// For so long a tab that nobody sees keeps its connection.
const UNSEEN = 30_000;
// After an event, for the counts to have it.
const SETTLE = 2_200;

let signedIn = false;
let following = false;

const feed = new Feed(by('events'), show);
const repos = new Repos(by('repos'));
const stream = new Stream({
  state: (name) => say('live', name, { connecting: 'Connecting', live: 'Live', degraded: 'Reconnecting' }[name]),
  // A stream that goes on at its cursor misses nothing; a new one begins now.
  open: (resumed) => (resumed ? look() : Promise.all([look(), readActivity(), readRepos()])),
  event: (event) => {
    feed.add([event], true);
    if (!repos.moved(event)) soon(readRepos);
    soon(look);
  },
  lost: () => readActivity(),
  signedOut: () => leave('The session is over', 'Sign in again: print a link where the gateway runs, and open it here.'),
});

// ---- reading

async function get(path) {
  const answer = await fetch(path);
  if (answer.status === 401) {
    if (signedIn) leave('The session is over', 'Sign in again: print a link where the gateway runs, and open it here.');
    return null;
  }
  return answer.ok ? answer.json() : null;
}

// A read that fails is tried again with the next look; what is shown stays.
const tried = (read) => async () => {
  try {
    return await read();
  } catch {
    return null;
  }
};

const readActivity = tried(async () => {
  const activity = await get('/api/dashboard/activity?limit=100');
  if (activity && signedIn) feed.add(activity.events, false);
});

const readRepos = tried(async () => {
  const list = await get('/api/repos?limit=100');
  if (list && signedIn) repos.show(list.repos);
  show();
});

const look = tried(async () => {
  const summary = await get('/api/dashboard/summary');
  if (!summary || !signedIn) return;
  const { counts, channels } = summary;
  number('count-repositories', counts.repositories);
  number('count-failing', counts.failing, 'bad');
  number('count-running', counts.running, 'moving');
  number('count-runs', counts.runsToday);
  by('count-failed').textContent = counts.failedToday > 0 ? `${counts.failedToday.toLocaleString()} failed` : '';
  stream.follow([...channels].sort());
  following = channels.length > 0;
  if (!following) say('live', 'waiting', 'Waiting');
});

const askHealth = tried(async () => {
  const answer = await fetch('/readyz').catch(() => null);
  const health = await answer?.json().catch(() => null);
  const store = { sqlite: 'SQLite', postgres: 'PostgreSQL' }[health?.store] ?? health?.store;
  if (answer?.ok) say('health', 'live', `Ready, on ${store}`);
  else if (health?.status === 'stopping') say('health', 'degraded', 'Stopping');
  else if (health) say('health', 'failed', 'The store does not answer');
  else say('health', 'failed', 'The gateway does not answer');
});

// Runs `what` once, after things have settled.
const pending = new Map();
function soon(what) {
  if (pending.has(what)) return;
  pending.set(what, setTimeout(() => (pending.delete(what), what()), SETTLE));
}

// ---- showing

function say(id, state, words) {
  const place = by(id);
  place.dataset.state = state;
  const text = place.querySelector('.words');
  if (text.textContent !== words) text.textContent = words;
}

function number(id, value, tone) {
  const place = by(id);
  place.textContent = value.toLocaleString();
  if (tone) place.dataset.tone = value > 0 ? tone : '';
}

function show() {
  const loading = by('events').hasAttribute('aria-busy');
  by('empty').hidden = loading || feed.size > 0 || feed.waiting > 0;
  by('no-match').hidden = loading || feed.size === 0 || feed.shown > 0;
  by('no-repos').hidden = by('repos').hasAttribute('aria-busy') || repos.size > 0;
  const button = by('pause');
  button.setAttribute('aria-pressed', String(feed.paused));
  button.textContent = feed.paused ? `Resume${feed.waiting > 0 ? ` (${feed.waiting} new)` : ''}` : 'Pause';
}

function enter() {
  signedIn = true;
  skeleton(by('events'), 12);
  skeleton(by('repos'), 3);
  by('front').hidden = true;
  for (const id of ['board', 'live', 'sign-out']) by(id).hidden = false;
  document.body.dataset.view = 'board';
  show();
  look();
  readActivity();
  readRepos();
}

function leave(title, words) {
  signedIn = following = false;
  stream.close();
  feed.clear();
  repos.clear();
  if (title) by('front-title').textContent = title;
  if (words) by('front-words').textContent = words;
  for (const id of ['board', 'live', 'sign-out']) by(id).hidden = true;
  by('front').hidden = false;
  document.body.dataset.view = 'front';
}

async function signOut() {
  const answer = await fetch('/api/auth/session', { method: 'DELETE' }).catch(() => null);
  if (answer?.ok) leave('Signed out', 'To come back, print a link where the gateway runs, and open it here:');
}

// ---- acting

const help = by('help');
const filter = by('filter');

function escape() {
  if (help.open) help.close();
  else if (document.activeElement === filter || filter.value) {
    filter.value = '';
    feed.filter('');
    filter.blur();
  } else document.activeElement?.blur();
}

function openEvent() {
  const row = document.activeElement;
  if (row?.matches('a.face')) row.click();
}

const onBoard = () => signedIn && !help.open;
const actions = [
  { keys: ['j', 'ArrowDown'], says: 'Next event', run: () => feed.move(1), when: onBoard },
  { keys: ['k', 'ArrowUp'], says: 'Previous event', run: () => feed.move(-1), when: onBoard },
  { keys: ['g g'], says: 'Newest event', run: () => feed.move('first'), when: onBoard },
  { keys: ['G'], says: 'Oldest event that is shown', run: () => feed.move('last'), when: onBoard },
  { keys: ['o'], says: 'Open the event on GitHub', run: openEvent, when: onBoard },
  { keys: ['p'], says: 'Pause and resume', run: () => feed.pause(!feed.paused), when: onBoard },
  { keys: ['/'], says: 'Filter', run: () => filter.focus(), when: onBoard },
  { keys: ['Q'], says: 'Sign out', run: signOut, when: onBoard },
  { keys: ['?'], says: 'Show these keys', run: () => (help.open ? help.close() : help.showModal()) },
  { keys: ['Escape'], says: 'One step back', run: escape },
];
listen(actions);
by('keys').append(...rows(actions));
by('help-button').addEventListener('click', () => help.showModal());
by('help-close').addEventListener('click', () => help.close());
help.addEventListener('click', (event) => event.target === help && help.close());
by('pause').addEventListener('click', () => feed.pause(!feed.paused));
by('sign-out').addEventListener('click', signOut);
filter.addEventListener('input', () => feed.filter(filter.value));
by('hook').textContent = `${location.origin}/webhooks/github`;

for (const button of document.querySelectorAll('.copy')) {
  // Only where the browser lets us: over plain http from elsewhere it does not.
  button.hidden = !navigator.clipboard;
  button.addEventListener('click', async () => {
    await navigator.clipboard.writeText(button.dataset.copies ?? by(button.dataset.copiesFrom).textContent);
    button.textContent = 'Copied';
    setTimeout(() => (button.textContent = 'Copy'), 1500);
  });
}

// ---- beginning

async function begin() {
  const answer = await fetch('/api/auth/me').catch(() => null);
  if (answer?.ok) enter();
  else if (answer?.status === 401) leave();
  else if (answer?.status === 403) {
    leave('No access', 'This user is blocked on this gateway. Whoever runs it can unblock it.');
  } else if (answer?.status === 421) {
    leave('Another address', 'This gateway is reached under another name: open its public URL.');
  } else {
    say('health', 'failed', 'The gateway does not answer');
    setTimeout(begin, LOOK_FOR_FIRST);
  }
}

// So often, as long as somebody can see it.
let looked = Date.now();
setInterval(() => {
  if (document.hidden || Date.now() - looked < (following ? LOOK : LOOK_FOR_FIRST)) return;
  looked = Date.now();
  askHealth();
  if (signedIn) look();
}, 1000);

// A tab that nobody sees for a while goes on at its cursor when somebody does.
let leaving;
document.addEventListener('visibilitychange', () => {
  clearTimeout(leaving);
  if (document.hidden) leaving = setTimeout(() => stream.pause(), UNSEEN);
  else {
    looked = 0;
    stream.resume();
  }
});

askHealth();
fetch('/healthz').then((answer) => answer.json()).then(({ version }) => {
  by('version').textContent = `Campanile ${version}`;
}, () => {});
begin();
