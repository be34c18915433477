// JSON Web Tokens, signed with the cluster's key.

import crypto from 'node:crypto';

const HASHES = { HS256: 'sha256', HS384: 'sha384', HS512: 'sha512' };

/** A function that signs claims; one trailing newline of the key file is not part of the key. */
export function signer(keyFile) {
  const key = keyFile.at(-1) === 10 ? keyFile.subarray(0, -1) : keyFile;
  return (claims, alg = 'HS256') => {
    const encode = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
    const signed = `${encode({ alg, typ: 'JWT' })}.${encode(claims)}`;
    return `${signed}.${crypto.createHmac(HASHES[alg], key).update(signed).digest('base64url')}`;
  };
}

/** Seconds since 1970, `offset` seconds from now. */
export const seconds = (offset = 0) => Math.floor(Date.now() / 1000) + offset;
