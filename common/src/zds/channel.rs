//! Messages over a socket. Limits on waits are the callers': what is awaited when differs on the two sides.

use std::os::fd::AsFd;

use super::messages::{decode_ack, decode_hello, decode_request, encode_ack, encode_hello, encode_request};
use super::{Ack, PACKET_MAX, Request, ZdsError};
use crate::net::seqpacket::{Packet, SeqPacket};

/// One end of a ZDS connection.
///
/// Cancel safety of all its calls: dropped early, the message was neither sent nor received.
#[derive(Debug)]
pub struct Channel(SeqPacket);

impl Channel {
    /// Over a connected socket.
    pub fn new(socket: SeqPacket) -> Self {
        Self(socket)
    }

    /// The user that the peer's process ran as when it connected or listened.
    pub fn peer_uid(&self) -> std::io::Result<u32> {
        self.0.peer_uid()
    }

    /// The proxy's first message.
    ///
    /// Errors: the socket's.
    pub async fn send_hello(&self) -> Result<(), ZdsError> {
        Ok(self.0.send(&encode_hello(), &[]).await?)
    }

    /// Waits for the proxy's first message.
    ///
    /// Errors: the peer ended the connection or sent something else; drop the connection.
    pub async fn recv_hello(&self) -> Result<(), ZdsError> {
        let packet = self.recv().await?.ok_or(ZdsError::Ended)?;
        decode_hello(&without_descriptors("hello", packet)?)
    }

    /// Asks the proxy for something; its answer is to be awaited before the next is asked.
    ///
    /// Errors: the socket's, or the request is too long for a packet.
    pub async fn send_request(&self, request: &Request) -> Result<(), ZdsError> {
        let bytes = encode_request(request)?;
        match request {
            Request::Add { netns, .. } => self.0.send(&bytes, &[netns.as_fd()]).await?,
            _ => self.0.send(&bytes, &[]).await?,
        }
        Ok(())
    }

    /// Waits for what the agent asks next; `None` when it ended the connection.
    ///
    /// Errors: [`ZdsError::is_refusal_only`] tells whether to refuse the message, or the connection with it.
    pub async fn recv_request(&self) -> Result<Option<Request>, ZdsError> {
        match self.recv().await? {
            Some(Packet { bytes, fds, .. }) => decode_request(&bytes, fds).map(Some),
            None => Ok(None),
        }
    }

    /// Answers the last request.
    ///
    /// Errors: the socket's.
    pub async fn send_ack(&self, ack: &Ack) -> Result<(), ZdsError> {
        Ok(self.0.send(&encode_ack(ack), &[]).await?)
    }

    /// Waits for the answer to the last request. The inner result is the proxy's own.
    ///
    /// Errors: the peer ended the connection or sent something else; drop the connection.
    pub async fn recv_ack(&self) -> Result<Ack, ZdsError> {
        let packet = self.recv().await?.ok_or(ZdsError::Ended)?;
        decode_ack(&without_descriptors("ack", packet)?)
    }

    async fn recv(&self) -> Result<Option<Packet>, ZdsError> {
        match self.0.recv(PACKET_MAX).await? {
            Some(packet) if packet.truncated => Err(ZdsError::Truncated),
            packet => Ok(packet),
        }
    }
}

fn without_descriptors(what: &'static str, packet: Packet) -> Result<Vec<u8>, ZdsError> {
    match packet.fds.len() {
        0 => Ok(packet.bytes),
        found => Err(ZdsError::Descriptors { what, found, wanted: 0 }),
    }
}
