// Stock clients that publish numbered messages and write down what they see.
//
//   node stock.mjs URL MODULES PLANS
//
// PLANS is JSON: [{client, version, publishes, subscribes, intervalMs, padding}];
// padding is the length of a text in each message, none by default. What happens
// goes to standard output as JSON, one line each; `listen` on standard input ends
// the publishing, its end the process.

import readline from 'node:readline';
import { load } from '../conformance/adapter.mjs';

const FOREVER = 2 ** 31 - 1;
const [url, modules, plans] = process.argv.slice(2);
const { hostname, port, pathname } = new URL(url);
const name = (channel) => `chaos:${channel}`;
const number = (channel) => Number(channel.slice('chaos:'.length));
let isPublishing = true;

function note(client, what) {
  process.stdout.write(`${JSON.stringify({ at: Date.now(), client, ...what })}\n`);
}

/** Hands on whatever a queue gets. */
async function each(queue, handle) {
  for (;;) handle(await queue.next(FOREVER));
}

function run({ client, version, publishes, subscribes, intervalMs, padding = 0 }) {
  // They come back soon, as a game would configure it; the default is 10 to 20 s.
  const autoReconnectOptions = { initialDelay: 200, randomness: 200, multiplier: 1, maxDelay: 500 };
  const sc = load(version, modules).create({
    hostname, port: Number(port), path: pathname, autoReconnect: true, autoReconnectOptions });
  each(sc.events.connect, ({ id }) => note(client, { what: 'connected', id }));
  each(sc.events.disconnect, ({ code }) => note(client, { what: 'disconnected', code: code ?? 1006 }));
  each(sc.events.subscribe, ({ channel }) => note(client, { what: 'subscribed', channel: number(channel) }));
  // A connection that is lost is an error event, too.
  each(sc.events.error, () => {});
  for (const channel of subscribes) {
    each(sc.watch(name(channel)), ({ p, n, text = '' }) => {
      // One of the wrong length is none.
      if (text.length % 1000 === 0) note(client, { what: 'delivered', channel, p, n });
    });
  }
  const text = padding > 0 ? { text: 'x'.repeat(padding) } : {};
  let n = 0;
  setInterval(async () => {
    if (!isPublishing || sc.state !== 'open') return;
    n += 1;
    const own = n;
    note(client, { what: 'published', n: own, channel: publishes });
    try {
      await sc.publish(name(publishes), { p: client, n: own, ...text });
      note(client, { what: 'answered', n: own, error: null });
    } catch (error) {
      // What the client itself says of a connection that is gone is no answer.
      if (sc.state === 'open' && !/^(BadConnection|Socket.*)Error$/.test(error.name)) {
        note(client, { what: 'answered', n: own, error: error.name });
      }
    }
  }, intervalMs);
}

for (const plan of JSON.parse(plans)) run(plan);
process.on('unhandledRejection', () => {});
const lines = readline.createInterface({ input: process.stdin });
lines.on('line', (line) => { if (line === 'listen') isPublishing = false; });
lines.on('close', () => process.exit(0));
