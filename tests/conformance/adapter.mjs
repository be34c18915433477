// One face for the published clients: v14 speaks callbacks, v15 and later streams.
//
// A `Client` records everything the real client reports, from the first moment
// on, in queues that a case can await; it adds no behaviour of its own.

import { createRequire } from 'node:module';
import path from 'node:path';

/** How long a case waits for anything, in milliseconds. */
export const PATIENCE_MS = Number(process.env.MUSTER_TEST_PATIENCE_S ?? 20) * 1000;

/** What was received and not yet taken, in order. */
export class Queue {
  items = [];
  seen = 0;
  #waiting = [];

  constructor(what) {
    this.what = what;
  }

  push(item) {
    this.seen += 1;
    const waiting = this.#waiting.shift();
    if (waiting) waiting(item);
    else this.items.push(item);
  }

  /** The next item; fails after `patience` milliseconds. */
  next(patience = PATIENCE_MS) {
    if (this.items.length) return Promise.resolve(this.items.shift());
    return new Promise((resolve, reject) => {
      const waiting = (item) => {
        clearTimeout(timer);
        resolve(item);
      };
      const timer = setTimeout(() => {
        this.#waiting = this.#waiting.filter((other) => other !== waiting);
        reject(new Error(`no ${this.what} within ${patience} ms`));
      }, patience);
      this.#waiting.push(waiting);
    });
  }

  /** The next item for which `accept` holds; the ones before it are dropped. */
  async until(accept, patience = PATIENCE_MS) {
    const deadline = Date.now() + patience;
    for (;;) {
      const item = await this.next(Math.max(1, deadline - Date.now()));
      if (accept(item)) return item;
    }
  }
}

/** Keeps a client's token, as localStorage would in a browser. */
class TokenStore {
  constructor(token) {
    this.token = token ?? null;
  }

  saveToken(name, token, options, callback) {
    this.token = token;
    callback?.(null, token);
    return Promise.resolve(token);
  }

  removeToken(name, callback) {
    const old = this.token;
    this.token = null;
    callback?.(null, old);
    return Promise.resolve(old);
  }

  loadToken(name, callback) {
    callback?.(null, this.token);
    return Promise.resolve(this.token);
  }
}

const EVENTS = ['connect', 'connectAbort', 'disconnect', 'kickOut', 'removeAuthToken', 'authenticate',
  'deauthenticate', 'subscribe', 'subscribeFail', 'unsubscribe', 'error'];

// v14 hands events over as positional arguments; these are their names.
const V14_ARGUMENTS = {
  connect: (status) => status,
  connectAbort: (code, reason) => ({ code, reason }),
  disconnect: (code, reason) => ({ code, reason }),
  kickOut: (message, channel) => ({ message, channel }),
  removeAuthToken: (oldAuthToken) => ({ oldAuthToken }),
  authenticate: (signedAuthToken) => ({ signedAuthToken }),
  deauthenticate: (oldSignedAuthToken) => ({ oldSignedAuthToken }),
  subscribe: (channel) => ({ channel }),
  subscribeFail: (error, channel) => ({ error, channel }),
  unsubscribe: (channel) => ({ channel }),
  error: (error) => ({ error }),
};

/** A published client with everything it reports in queues. */
class Client {
  events = Object.fromEntries(EVENTS.map((name) => [name, new Queue(`'${name}' event`)]));

  constructor(socket, tokens) {
    this.socket = socket;
    this.tokens = tokens;
  }

  get id() { return this.socket.id; }
  get state() { return this.socket.state; }
  get authState() { return this.socket.authState; }

  /** Waits for the handshake; its answer. */
  async connected() {
    const status = await this.events.connect.next();
    return { id: status.id, isAuthenticated: status.isAuthenticated, pingTimeout: status.pingTimeout,
      authError: status.authError };
  }

  /** Subscribes and waits until the cluster has acknowledged it; the queue of what arrives. */
  async subscribe(channel, options) {
    const queue = this.watch(channel, options);
    await this.subscribed(channel);
    return queue;
  }

  async subscribed(channel) {
    const deadline = Date.now() + PATIENCE_MS;
    while (!this.socket.isSubscribed(channel)) {
      if (this.events.subscribeFail.items.length) {
        throw this.events.subscribeFail.items[0].error;
      }
      if (Date.now() > deadline) throw new Error(`no acknowledgement of the subscription to ${channel}`);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }

  unsubscribe(channel) { this.socket.unsubscribe(channel); }
  disconnect(code, reason) { this.socket.disconnect(code, reason); }
}

class StreamClient extends Client {
  constructor(socket, tokens) {
    super(socket, tokens);
    for (const name of EVENTS) this.#drain(socket.listener(name), this.events[name]);
  }

  async #drain(stream, queue) {
    for await (const item of stream) queue.push(item);
  }

  watch(channel, options) {
    const queue = new Queue(`publication on '${channel}'`);
    this.#drain(this.socket.subscribe(channel, options), queue);
    return queue;
  }

  publish(channel, data) { return this.socket.invokePublish(channel, data); }
  publishOneWay(channel, data) { this.socket.transmitPublish(channel, data); }
  call(procedure, data) { return this.socket.invoke(procedure, data); }
  transmit(event, data) { this.socket.transmit(event, data); }
  authenticate(token) { return this.socket.authenticate(token); }
  deauthenticate() { return this.socket.deauthenticate(); }
}

class CallbackClient extends Client {
  constructor(socket, tokens) {
    super(socket, tokens);
    for (const name of EVENTS) {
      socket.on(name, (...values) => this.events[name].push(V14_ARGUMENTS[name](...values)));
    }
  }

  watch(channel, options) {
    const queue = new Queue(`publication on '${channel}'`);
    this.socket.watch(channel, (data) => queue.push(data));
    this.socket.subscribe(channel, options);
    return queue;
  }

  publish(channel, data) {
    return this.#answer((callback) => this.socket.publish(channel, data, callback));
  }

  publishOneWay(channel, data) { this.socket.publish(channel, data); }
  call(procedure, data) { return this.#answer((callback) => this.socket.emit(procedure, data, callback)); }
  transmit(event, data) { this.socket.emit(event, data); }
  authenticate(token) { return this.#answer((callback) => this.socket.authenticate(token, callback)); }
  deauthenticate() { return this.#answer((callback) => this.socket.deauthenticate(callback)); }

  #answer(call) {
    return new Promise((resolve, reject) => {
      call((error, data) => (error ? reject(error) : resolve(data)));
    });
  }
}

/** Loads one of the published clients from `modules`, a node_modules directory. */
export function load(version, modules) {
  const require = createRequire(path.join(modules, 'loader.cjs'));
  const library = require(`sc${version}`);
  const legacy = version < 15;
  return {
    version,
    legacy,
    /** Creates a client; `token` is what its token store holds before it connects. */
    create(options = {}) {
      const { token, ...rest } = options;
      const tokens = new TokenStore(token);
      const socket = library.create({
        ...(legacy ? { multiplex: false } : {}),
        autoReconnect: false,
        authEngine: tokens,
        ...rest,
      });
      return legacy ? new CallbackClient(socket, tokens) : new StreamClient(socket, tokens);
    },
  };
}
