//! Apps' sockets without keepalive: it takes four system calls, and most connections are over before it could matter.
//! Those that live when the worker next looks, once a second, get it then.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use culvert_common::net::socket::{Keepalive, set_keepalive};
use tokio::net::TcpStream;

/// Below that the list is not searched for those that have closed.
const FEW: usize = 64;

/// Sockets dialled since the worker looked last. Not `Send`.
#[derive(Default)]
pub(crate) struct Young(RefCell<Vec<Weak<TcpStream>>>);

impl Young {
    /// Takes note of a socket without keepalive.
    pub(crate) fn note(&self, socket: TcpStream) -> Rc<TcpStream> {
        let socket = Rc::new(socket);
        let mut young = self.0.borrow_mut();
        if young.len() >= FEW && young.len() == young.capacity() {
            young.retain(|socket| socket.strong_count() > 0);
        }
        young.push(Rc::downgrade(&socket));
        socket
    }

    /// Gives those that are open their keepalive.
    pub(crate) fn sweep(&self, keepalive: Option<Keepalive>) {
        let young = self.0.take();
        let Some(keepalive) = keepalive else { return };
        for socket in young.iter().filter_map(Weak::upgrade) {
            if let Err(error) = set_keepalive(&*socket, keepalive) {
                tracing::debug!(%error, "a connection has no keepalive");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use socket2::SockRef;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_lives_gets_keepalive_once_and_what_has_gone_is_forgotten() {
        let listener = TcpListener::bind("[::1]:0").await.unwrap();
        let dial = async || {
            let dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            listener.accept().await.unwrap(); // or the queue would fill
            dialled
        };
        let keepalive = Keepalive {
            time: Duration::from_secs(91),
            interval: Duration::from_secs(17),
            retries: 4,
            user_timeout: false,
        };
        let young = Young::default();
        let (lives, _gone) = (young.note(dial().await), drop(young.note(dial().await)));
        assert!(!SockRef::from(&*lives).keepalive().unwrap());
        young.sweep(Some(keepalive));
        assert!(SockRef::from(&*lives).keepalive().unwrap());
        assert_eq!(SockRef::from(&*lives).tcp_keepalive_retries().unwrap(), 4);
        assert_eq!((young.0.borrow().len(), Rc::weak_count(&lives)), (0, 0));
        for _ in 0..FEW * 20 {
            drop(young.note(dial().await));
        }
        assert!(young.0.borrow().capacity() <= FEW * 2, "bounded by what is open");
    }
}
