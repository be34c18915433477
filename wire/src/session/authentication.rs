//! The handshake, and the token that a client has.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Context, Phase, Session};
use crate::{
    CallId, answer, packet,
    token::{TokenError, UnixSeconds, Verified},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Token {
    expires: Option<UnixSeconds>,
}

impl Session {
    /// The operator issues a token (socketcluster.md section 8, `#setAuthToken`).
    /// Returns false before the handshake, when that is not allowed.
    pub fn set_token(&mut self, token: &str, verified: Verified, cx: &mut Context<'_>) -> bool {
        if self.is_open() {
            self.token = Some(Token {
                expires: verified.expires,
            });
            cx.out.push(answer::set_auth_token(token));
        }
        self.is_open()
    }

    /// The operator withdraws the token.
    pub fn remove_token(&mut self, cx: &mut Context<'_>) {
        self.token = None;
        cx.out.push(answer::remove_auth_token());
    }

    /// Processed again when it comes again, and answered with the same id.
    pub(super) fn handshake(
        &mut self,
        cid: &CallId,
        data: Option<&RawValue>,
        cx: &mut Context<'_>,
    ) {
        self.phase = Phase::Open;
        let given = data
            .and_then(|raw| serde_json::from_str::<Handshake<'_>>(raw.get()).ok())
            .and_then(|handshake| handshake.auth_token)
            .filter(|token| !matches!(token.get(), "null" | "\"\""));
        let error = given.and_then(|token| self.take_token(token, cx).err());
        let body = HandshakeAnswer {
            id: self.id.as_str(),
            ping_timeout: cx.rules.pong_timeout.as_millis(),
            is_authenticated: self.token.is_some(),
            auth_error: error.as_ref().map(TokenError::body),
        };
        self.answers.push(answer::success_with(cid, &body), cx.out);
        if error.is_some_and(|error| error.is_bad_token()) {
            cx.out.push(answer::remove_auth_token());
        }
    }

    pub(super) fn authenticate(
        &mut self,
        cid: &CallId,
        data: Option<&RawValue>,
        cx: &mut Context<'_>,
    ) {
        let result = match data {
            None => Err(TokenError::Invalid("jwt must be provided")),
            Some(raw) => self.take_token(raw, cx),
        };
        let error = match result {
            Ok(()) => None,
            Err(error) if error.is_bad_token() => {
                self.answers
                    .push(answer::token_failure(cid, &error), cx.out);
                cx.out.push(answer::remove_auth_token());
                return;
            }
            Err(error) => Some(error),
        };
        let body = AuthenticateAnswer {
            is_authenticated: self.token.is_some(),
            auth_error: error.as_ref().map(TokenError::body),
        };
        self.answers.push(answer::success_with(cid, &body), cx.out);
    }

    /// Whatever the outcome, an earlier token no longer stands.
    fn take_token(&mut self, raw: &RawValue, cx: &Context<'_>) -> Result<(), TokenError> {
        self.token = None;
        let token = match raw.get() {
            "null" | "\"\"" => return Err(TokenError::Invalid("jwt must be provided")),
            text if text.starts_with('"') => {
                packet::string(raw).ok_or(TokenError::Invalid("jwt malformed"))?
            }
            _ => {
                return Err(TokenError::Other(
                    "Invalid token format - Token must be a string",
                ));
            }
        };
        let Verified { expires } = cx.host.verify(&token, cx.unix_now)?;
        self.token = Some(Token { expires });
        Ok(())
    }

    /// Noticed on pongs and events only; the request that reveals it is still
    /// executed (socketcluster.md section 8, Expiry).
    pub(super) fn drop_expired_token(&mut self, cx: &mut Context<'_>) {
        if let Some(Token {
            expires: Some(expires),
        }) = self.token
            && cx.unix_now > expires
        {
            self.remove_token(cx);
        }
    }
}

#[derive(Debug, Deserialize)]
struct Handshake<'a> {
    #[serde(rename = "authToken", borrow)]
    auth_token: Option<&'a RawValue>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct HandshakeAnswer<'a> {
    id: &'a str,
    ping_timeout: u128,
    is_authenticated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_error: Option<crate::token::TokenErrorBody>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AuthenticateAnswer {
    is_authenticated: bool,
    auth_error: Option<crate::token::TokenErrorBody>,
}
