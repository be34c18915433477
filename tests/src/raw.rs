//! A client that hides nothing: text in, text out, and what the close said.

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Bytes, Error, Message, protocol::CloseFrame},
};

use crate::eventually::patience;

/// One connection.
#[derive(Debug)]
pub struct Raw {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// The session id that the handshake gave.
    pub id: String,
    last_cid: u64,
    /// Deliveries that arrived while an answer was awaited.
    early: Vec<String>,
}

/// What ended a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// The status code; 1005 if there was none, 1006 if there was no close frame.
    pub code: u16,
    /// The reason, often empty.
    pub reason: String,
}

impl Raw {
    /// Opens a WebSocket and sends nothing.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn open(url: &str) -> Self {
        let (stream, _) = timeout(patience(), connect_async(url))
            .await
            .expect("the server answers in time")
            .expect("the server upgrades");
        Self {
            stream,
            id: String::new(),
            last_cid: 0,
            early: vec![],
        }
    }

    /// Opens a WebSocket and makes the handshake without a token.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn connect(url: &str) -> Self {
        Self::connect_with(url, &Value::Null).await.0
    }

    /// Opens a WebSocket and makes the handshake with a token; also the answer's
    /// data.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn connect_with(url: &str, token: &Value) -> (Self, Value) {
        let mut raw = Self::open(url).await;
        let answer = raw
            .call("#handshake", &format!(r#"{{"authToken":{token}}}"#))
            .await;
        let answer: Value = serde_json::from_str(&answer).expect("answers are JSON");
        let data = answer["data"].clone();
        raw.id = data["id"]
            .as_str()
            .expect("the handshake gives an id")
            .to_owned();
        (raw, data)
    }

    /// Sends a text frame.
    ///
    /// # Panics
    /// When the connection is gone.
    pub async fn send(&mut self, text: &str) {
        self.send_message(Message::text(text)).await;
    }

    /// Sends any message.
    ///
    /// # Panics
    /// When the connection is gone.
    pub async fn send_message(&mut self, message: Message) {
        self.stream
            .send(message)
            .await
            .expect("the connection stands");
    }

    /// Whether the connection stands: asks with a WebSocket ping.
    ///
    /// # Panics
    /// When something else than a pong arrives.
    pub async fn is_alive(&mut self) -> bool {
        if self.stream.send(Message::Ping(Bytes::new())).await.is_err() {
            return false;
        }
        match self.receive_message().await {
            Ok(Message::Pong(_)) => true,
            Err(_) => false,
            Ok(other) => panic!("a pong was expected, not {other:?}"),
        }
    }

    /// The next text that is no ping of protocol version 2; pings are answered.
    ///
    /// # Panics
    /// When none comes in time or the connection ends.
    pub async fn receive(&mut self) -> String {
        if !self.early.is_empty() {
            return self.early.remove(0);
        }
        self.receive_now().await
    }

    async fn receive_now(&mut self) -> String {
        loop {
            match self.receive_message().await {
                Ok(Message::Text(text)) if text.is_empty() => self.send("").await,
                Ok(Message::Text(text)) => return text.as_str().to_owned(),
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                other => panic!("a text was expected, not {other:?}"),
            }
        }
    }

    /// The next text as [`Self::receive`] gives it, or what ended the connection.
    ///
    /// # Errors
    /// The end of the connection.
    ///
    /// # Panics
    /// When nothing comes in time.
    pub async fn try_receive(&mut self) -> Result<String, Closed> {
        if !self.early.is_empty() {
            return Ok(self.early.remove(0));
        }
        loop {
            match self.receive_message().await {
                Ok(Message::Text(text)) if text.is_empty() => {
                    // That it is gone shows with the next one.
                    let _ = self.stream.send(Message::text("")).await;
                }
                Ok(Message::Text(text)) => return Ok(text.as_str().to_owned()),
                Ok(Message::Close(frame)) => return Err(frame.into()),
                Ok(_) => {}
                Err(_) => return Err(None.into()),
            }
        }
    }

    /// What arrived while answers were awaited.
    pub fn take_early(&mut self) -> Vec<String> {
        std::mem::take(&mut self.early)
    }

    /// The next message of any kind.
    ///
    /// # Errors
    /// What tungstenite says.
    ///
    /// # Panics
    /// When none comes in time.
    pub async fn receive_message(&mut self) -> Result<Message, Error> {
        timeout(patience(), self.stream.next())
            .await
            .expect("something arrives in time")
            .unwrap_or(Err(Error::AlreadyClosed))
    }

    /// Sends a call; `data` is JSON text. The answer's text.
    ///
    /// # Panics
    /// When no answer comes in time.
    pub async fn call(&mut self, event: &str, data: &str) -> String {
        self.last_cid += 1;
        let cid = self.last_cid;
        let event = Value::from(event);
        self.send(&format!(r#"{{"event":{event},"data":{data},"cid":{cid}}}"#))
            .await;
        self.answer(&cid.to_string()).await
    }

    /// The answer to a call whose `cid` is written like this; what arrives before
    /// it is kept for [`Self::receive`].
    ///
    /// # Panics
    /// When it does not come in time.
    pub async fn answer(&mut self, rid: &str) -> String {
        loop {
            let text = self.receive_now().await;
            let rest = text
                .strip_prefix(r#"{"rid":"#)
                .and_then(|rest| rest.strip_prefix(rid));
            if rest.is_some_and(|rest| rest.starts_with([',', '}'])) {
                return text;
            }
            self.early.push(text);
        }
    }

    /// Subscribes.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn subscribe(&mut self, channel: &str) {
        let data = serde_json::json!({ "channel": channel }).to_string();
        let answer = self.call("#subscribe", &data).await;
        assert!(!answer.contains("error"), "{answer}");
    }

    /// Publishes JSON text and waits for the acknowledgement.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn publish(&mut self, channel: &str, data: &str) {
        let channel = Value::from(channel);
        let answer = self
            .call(
                "#publish",
                &format!(r#"{{"channel":{channel},"data":{data}}}"#),
            )
            .await;
        assert!(!answer.contains("error"), "{answer}");
    }

    /// The channel and the data's text of the next packet, a delivery.
    ///
    /// # Panics
    /// When the next packet is none.
    pub async fn delivery(&mut self) -> (String, Option<String>) {
        let text = self.receive().await;
        delivery(&text).unwrap_or_else(|| panic!("a delivery was expected, not {text}"))
    }

    /// Reads until the connection ends, and answers the close.
    ///
    /// # Panics
    /// When it does not end in time.
    pub async fn closed(&mut self) -> Closed {
        loop {
            match self.receive_message().await {
                Ok(Message::Close(frame)) => {
                    // The rest of the closing handshake.
                    while self.receive_message().await.is_ok() {}
                    return frame.into();
                }
                Ok(_) => {}
                Err(_) => {
                    return Closed {
                        code: 1006,
                        reason: String::new(),
                    };
                }
            }
        }
    }

    /// Closes and returns what the server answered.
    ///
    /// # Panics
    /// When it does not answer in time.
    pub async fn close(mut self, code: u16, reason: &'static str) -> Closed {
        let frame = CloseFrame {
            code: code.into(),
            reason: reason.into(),
        };
        self.send_message(Message::Close(Some(frame))).await;
        self.closed().await
    }
}

impl From<Option<CloseFrame>> for Closed {
    fn from(frame: Option<CloseFrame>) -> Self {
        frame.map_or(
            Self {
                code: 1005,
                reason: String::new(),
            },
            |frame| Self {
                code: frame.code.into(),
                reason: frame.reason.as_str().to_owned(),
            },
        )
    }
}

/// Channel and raw data of a `#publish` packet.
fn delivery(text: &str) -> Option<(String, Option<String>)> {
    use serde::Deserialize;
    use serde_json::value::RawValue;

    #[derive(Deserialize)]
    struct Packet<'a> {
        event: &'a str,
        #[serde(borrow)]
        data: Data<'a>,
    }
    #[derive(Deserialize)]
    struct Data<'a> {
        channel: String,
        #[serde(borrow, default, deserialize_with = "present")]
        data: Option<&'a RawValue>,
    }
    // `null` is data.
    fn present<'de: 'a, 'a, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<&'a RawValue>, D::Error> {
        <&RawValue>::deserialize(deserializer).map(Some)
    }
    let packet: Packet<'_> = serde_json::from_str(text).ok()?;
    (packet.event == "#publish").then(|| {
        (
            packet.data.channel,
            packet.data.data.map(|data| data.get().to_owned()),
        )
    })
}
