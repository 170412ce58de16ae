package requests

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/e2e/lab"
	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

// Meshed tells a waypoint that no control plane tells anything: who it is, and where it sends all requests.
type Meshed struct {
	// Identity is the waypoint's SPIFFE identity, Certificate and Key prove it, in PEM, by Roots.
	Identity                string
	Certificate, Key, Roots string
	// Backend is the address of the backend's application, Expect its identity.
	Backend, Expect string
}

// newMeshed makes that of a waypoint in pod before server.
func newMeshed(control *lab.Control, pod, server *lab.Pod) (*Meshed, error) {
	cert, _, err := control.SignIdentity(pod.Identity())
	if err != nil {
		return nil, err
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("write the key of %s: %w", pod.Name, err)
	}
	roots, err := os.ReadFile(control.RootFile)
	if err != nil {
		return nil, err
	}
	m := &Meshed{
		Identity: pod.Identity(), Roots: string(roots), Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
		Backend: backendAt(server.Host), Expect: server.Identity(),
	}
	for _, c := range cert.Certificate {
		m.Certificate += string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c}))
	}
	return m, nil
}

// tunnel is where the backend's tunnels lead.
func (m *Meshed) tunnel() (netip.AddrPort, error) {
	backend, err := netip.ParseAddrPort(m.Backend)
	return netip.AddrPortFrom(backend.Addr(), api.PortHBONE), err
}

func (m *Meshed) svid() (*identity.SVID, error) {
	id, err := identity.Parse(m.Identity)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair([]byte(m.Certificate), []byte(m.Key))
	if err != nil {
		return nil, err
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, errors.New("the key cannot sign")
	}
	return identity.NewSVID(id, key, []string{m.Certificate, m.Roots})
}

// serveMeshed is a waypoint that is a reverse proxy of net/http between tunnels of ours, as the file says. It serves until ctx ends.
func serveMeshed(ctx context.Context, ln net.Listener, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var m Meshed
	if err := json.Unmarshal(text, &m); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	own, err := m.svid()
	if err != nil {
		return err
	}
	expect, err := identity.Parse(m.Expect)
	if err != nil {
		return err
	}
	target := hbone.Target{Source: own.Identity, Expect: []identity.Identity{expect}}
	if target.Addr, err = m.tunnel(); err != nil {
		return err
	}
	var d net.Dialer
	tunnels := hbone.NewPool(hbone.PoolConfig{
		Dial: func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", addr.String())
		},
		TLS: func(_ context.Context, t hbone.Target) (*tls.Config, error) {
			return identity.ClientTLS(own, t.Expect), nil
		},
	})
	defer tunnels.Close()
	inner := &streams{addr: ln.Addr(), conns: make(chan net.Conn), closed: make(chan struct{})}
	server := hbone.NewServer(hbone.ServerConfig{
		TLS:     func(*tls.ClientHelloInfo) (*tls.Config, error) { return identity.ServerTLS(own, nil), nil },
		Handler: inner.take,
	})
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(ctx, ln) }) // it ends with ctx
	defer served.Wait()
	return serveReverse(ctx, inner, m.Backend, func(ctx context.Context, _, addr string) (net.Conn, error) {
		return tunnels.Open(ctx, target, hbone.Request{Authority: addr})
	})
}

// streams is a listener whose connections come through tunnels.
type streams struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// take gives a tunnel to who accepts connections, and returns when it has ended.
func (l *streams) take(ctx context.Context, in *hbone.Incoming) {
	s, err := in.Accept()
	if err != nil {
		return // the client is gone
	}
	c := &streamConn{Conn: s, closed: make(chan struct{})}
	select {
	case l.conns <- c:
	case <-ctx.Done():
		return
	}
	<-c.closed
}

func (l *streams) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *streams) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *streams) Addr() net.Addr { return l.addr }

// streamConn tells when it was closed.
type streamConn struct {
	net.Conn
	closed chan struct{}
	once   sync.Once
}

func (c *streamConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { close(c.closed) })
	return err
}
