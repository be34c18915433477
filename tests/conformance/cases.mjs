// All cases, in the order in which they start.

import { authentication } from './cases/authentication.mjs';
import { connections } from './cases/connections.mjs';
import { failures } from './cases/failures.mjs';
import { history } from './cases/history.mjs';
import { operators } from './cases/operators.mjs';
import { publishing } from './cases/publishing.mjs';

// A case is `{name, run, runs?, alone?}`: `runs` says for which library it makes
// sense, `alone` that no other case may run at the same time.
export const cases = [...connections, ...authentication, ...publishing, ...history, ...operators,
  ...failures];
