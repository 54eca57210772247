// Every key of the page, declared once: what handles them and what the help shows is the same list.

// How long the first key of two waits for the second.
const SEQUENCE = 1000;
const SHOWN = { ArrowDown: '↓', ArrowUp: '↑', Escape: 'Esc' };

// `actions`: [{ keys: ['j', 'ArrowDown', 'g g'], says, run, when? }]. Nothing fires while a text field
// has the focus, Escape excepted.
export function listen(actions) {
  const byKey = new Map();
  for (const action of actions) {
    for (const key of action.keys) {
      if (byKey.has(key)) throw new Error(`two actions claim the key ${key}`);
      byKey.set(key, action);
    }
  }
  let first = null;
  addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const field = event.target instanceof HTMLInputElement;
    if (field && event.key !== 'Escape') return;
    const pair = first && `${first} ${event.key}`;
    const action = byKey.get(pair) ?? byKey.get(event.key);
    first = null;
    if (action) {
      if (action.when && !action.when()) return;
      event.preventDefault();
      action.run();
    } else if ([...byKey.keys()].some((key) => key.startsWith(`${event.key} `))) {
      first = event.key;
      setTimeout(() => (first = null), SEQUENCE);
    }
  });
}

// The same list as rows of a table.
export function rows(actions) {
  return actions.map(({ keys, says }) => {
    const row = document.createElement('tr');
    const head = document.createElement('th');
    head.scope = 'row';
    keys.forEach((key, at) => {
      if (at > 0) head.append(' ');
      for (const part of key.split(' ')) {
        const kbd = document.createElement('kbd');
        kbd.textContent = SHOWN[part] ?? part;
        head.append(kbd);
      }
    });
    const words = document.createElement('td');
    words.textContent = says;
    row.append(head, words);
    return row;
  });
}
