// What a case asks of whoever started the cluster.
//
// A request goes out as a line `@ID JSON` on standard output; the answer comes
// as a line `ID JSON` on standard input. So this directory needs to know
// neither the cluster's command line nor its process ids.

import readline from 'node:readline';

const pending = new Map();
let last = 0;

const lines = readline.createInterface({ input: process.stdin });
lines.on('line', (line) => {
  const space = line.indexOf(' ');
  const answer = pending.get(line.slice(0, space));
  pending.delete(line.slice(0, space));
  answer?.(JSON.parse(line.slice(space + 1)));
});

function ask(verb, more = {}) {
  last += 1;
  const id = String(last);
  return new Promise((resolve, reject) => {
    pending.set(id, (answer) => (answer.error ? reject(new Error(answer.error)) : resolve(answer)));
    process.stdout.write(`@${id} ${JSON.stringify({ verb, ...more })}\n`);
  });
}

export const operator = {
  /** Removes subscriptions: of `channel`, or of every channel when it is absent. */
  kick: (connection, channel, message) => ask('kick', { connection, channel, message }),
  disconnect: (connection, code, reason) => ask('disconnect', { connection, code, reason }),
  setToken: (connection, claims) => ask('set-token', { connection, claims }),
  removeToken: (connection) => ask('remove-token', { connection }),
  /** Connections per worker, by slot. */
  workers: async () => (await ask('workers')).connections,
  killWorker: (slot) => ask('kill-worker', { slot }),
  killBroker: (slot) => ask('kill-broker', { slot }),
  /** Changes the number of workers, and waits until that is done. */
  scale: (workers) => ask('scale', { workers }),
  /** Stops listening, so that the process can end. */
  close: () => lines.close(),
};
