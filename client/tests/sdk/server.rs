//! A SocketCluster server by hand: each test says what it answers.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use muster_client::{Client, ClientBuilder, CloseCode, ReconnectConfig};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{
    WebSocketStream, accept_async,
    tungstenite::{Message, protocol::CloseFrame},
};

/// Where clients connect.
pub(crate) struct Server {
    listener: TcpListener,
}

/// One client's connection.
pub(crate) struct Accepted {
    socket: WebSocketStream<TcpStream>,
}

impl Server {
    pub(crate) async fn bind() -> Self {
        Self {
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        }
    }

    /// A client that reconnects without much waiting.
    pub(crate) fn client(&self) -> ClientBuilder {
        let ms = Duration::from_millis;
        Client::builder(&self.url()).reconnect(Some(ReconnectConfig {
            first_min: ms(1),
            first_max: ms(2),
            max: ms(10),
            ..ReconnectConfig::default()
        }))
    }

    pub(crate) fn url(&self) -> String {
        format!(
            "ws://{}/socketcluster/",
            self.listener.local_addr().unwrap()
        )
    }

    pub(crate) async fn accept(&self) -> Accepted {
        let (stream, _) = self.listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        Accepted {
            socket: accept_async(stream).await.unwrap(),
        }
    }

    /// Accepts and answers the handshake; answers the token it carried.
    pub(crate) async fn open(&self) -> (Accepted, Value) {
        let mut accepted = self.accept().await;
        let packet = accepted.expect("#handshake").await;
        let token = packet["data"]["authToken"].clone();
        let data = json!({"id": "s", "pingTimeout": 20_000, "isAuthenticated": !token.is_null()});
        accepted.answer(&packet, data).await;
        (accepted, token)
    }

    /// A connected client and its connection.
    pub(crate) async fn pair(&self, builder: ClientBuilder) -> (Client, Accepted) {
        let (client, (accepted, _)) = tokio::join!(builder.connect(), self.open());
        (client.unwrap(), accepted)
    }
}

impl Accepted {
    /// The next packet; the connection must not end.
    pub(crate) async fn packet(&mut self) -> Value {
        loop {
            let message = self.socket.next().await.unwrap().unwrap();
            let text = message.to_text().unwrap();
            assert!(message.is_text(), "a packet was expected, not {message:?}");
            if !text.is_empty() {
                return serde_json::from_str(text).unwrap();
            }
        }
    }

    /// The next packet, which must be this event.
    pub(crate) async fn expect(&mut self, event: &str) -> Value {
        let packet = self.packet().await;
        assert_eq!(packet["event"], event, "{packet}");
        packet
    }

    pub(crate) async fn send(&mut self, packet: Value) {
        self.socket
            .send(Message::text(packet.to_string()))
            .await
            .unwrap();
    }

    pub(crate) async fn answer(&mut self, packet: &Value, data: Value) {
        self.send(json!({"rid": packet["cid"], "data": data})).await;
    }

    pub(crate) async fn refuse(&mut self, packet: &Value, error: Value) {
        self.send(json!({"rid": packet["cid"], "error": error}))
            .await;
    }

    pub(crate) async fn publish(&mut self, channel: &str, data: Value) {
        self.send(json!({"event": "#publish", "data": {"channel": channel, "data": data}}))
            .await;
    }

    /// Acknowledges the next packet, which must subscribe to `channel`.
    pub(crate) async fn acknowledge(&mut self, channel: &str) {
        let packet = self.expect("#subscribe").await;
        assert_eq!(packet["data"]["channel"], channel);
        self.send(json!({"rid": packet["cid"]})).await;
    }

    /// Closes with a code, or without one.
    pub(crate) async fn close(mut self, code: Option<u16>) {
        let frame = code.map(|code| CloseFrame {
            code: code.into(),
            reason: "why".into(),
        });
        self.socket.close(frame).await.unwrap();
        while let Some(Ok(_)) = self.socket.next().await {}
    }

    /// The code with which the client closes.
    pub(crate) async fn closed(mut self) -> CloseCode {
        loop {
            let message = self.socket.next().await.unwrap().unwrap();
            if let Message::Close(frame) = message {
                return CloseCode(frame.unwrap().code.into());
            }
        }
    }
}
