package hbone

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

var errRevoked = errors.New("revoked")

// revoker is what ServerConfig.Revoked and PoolConfig.Revoked ask.
type revoker struct{ on atomic.Bool }

func (r *revoker) revoked(peer []*x509.Certificate) error {
	if r.on.Load() && len(peer) > 0 {
		return errRevoked
	}
	return nil
}

// TestRecheck: on either side, tunnels of a peer that is revoked end at once, with their streams, and no new ones come about.
func TestRecheck(t *testing.T) {
	for _, side := range []string{"server", "client"} {
		t.Run(side, func(t *testing.T) {
			var server, client revoker
			w := newWorld(t, echo, func(cfg *ServerConfig) { cfg.Revoked = server.revoked })
			pool := w.pool(func(cfg *PoolConfig) {
				cfg.Revoked = func(to *Target, peer []*x509.Certificate) error {
					if want := w.target(); to.Addr != want.Addr || len(to.Expect) != 1 || to.Expect[0] != want.Expect[0] {
						t.Errorf("asked about a peer of target %v, want %v", to, want)
					}
					return client.revoked(peer)
				}
			})
			s := w.mustOpen(pool)
			defer s.Close()
			if got := s.PeerCertificates(); len(got) == 0 || got[0].URIs[0].String() != serverID.String() {
				t.Errorf("the peer's certificates are %v", got)
			}
			if n := w.server.Recheck() + pool.Recheck(); n != 0 {
				t.Fatalf("%d connections ended with nothing revoked", n)
			}
			n := 0
			if side == "server" {
				server.on.Store(true)
				n = w.server.Recheck()
			} else {
				client.on.Store(true)
				n = pool.Recheck()
			}
			if n != 1 {
				t.Errorf("%d connections ended, want the one", n)
			}
			_ = s.SetReadDeadline(time.Now().Add(patience))
			_, err := s.Read(make([]byte, 1))
			if _, ok := errors.AsType[*h2.ConnError](err); !ok {
				t.Errorf("the stream ends with %v, want the connection's end", err)
			}
			// One that is revoked between its handshake and the next check is found too.
			s, err = pool.Open(t.Context(), w.target(), request)
			if err == nil {
				s.Close()
				t.Error("a tunnel to or from the revoked peer was opened")
			}
			if dial, ok := errors.AsType[*DialError](err); side == "client" && (!ok || dial.Stage != StageTLS || !errors.Is(err, errRevoked)) {
				t.Errorf("it is refused by %v, want the cause", err)
			}
		})
	}
}

// TestRefusedIsTold: the server tells of handshakes that fail, with their cause, and not of those that only looked.
func TestRefusedIsTold(t *testing.T) {
	told := make(chan error, 10)
	w := newWorld(t, echo, func(cfg *ServerConfig) {
		cfg.Refused = func(nc net.Conn, err error) {
			if nc.RemoteAddr() == nil {
				t.Error("a connection without an address")
			}
			told <- err
		}
	})
	next := func() error {
		t.Helper()
		select {
		case err := <-told:
			return err
		case <-time.After(patience):
			t.Fatal("nothing is told")
			return nil
		}
	}
	w.rawDial().Close()
	foreign := w.tlsDial(w.ca.issue(t, identity.Identity{TrustDomain: "elsewhere", Namespace: "shop", ServiceAccount: "cart"}))
	_, _ = foreign.Read(make([]byte, 1))
	if verify, ok := errors.AsType[*identity.VerifyError](next()); !ok || verify.Reason != identity.ReasonTrustDomain {
		t.Errorf("a foreign client: %v", verify)
	}
	bare := tls.Client(w.rawDial(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	_, _ = bare.Read(make([]byte, 1))
	if err := next(); err == nil {
		t.Error("a client without a certificate is told of as none")
	}
	exchange(t, w.mustOpen(w.pool(nil)), "good")
	if len(told) != 0 {
		t.Errorf("told besides: %v", <-told)
	}
}
