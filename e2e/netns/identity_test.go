package netns

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api/extension"
	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/e2e/lab"
)

// lines returns the lines of a proxy's metrics that begin so and hold all of the texts.
func (w *world) lines(p *lab.Proxy, name string, texts ...string) []string {
	w.t.Helper()
	code, body, err := p.Get(w.ctx, 15020, "/metrics")
	w.must(err)
	if code != http.StatusOK {
		w.t.Fatalf("metrics: status %d", code)
	}
	var found []string
lines:
	for line := range strings.Lines(body) {
		if !strings.HasPrefix(line, name+"{") && !strings.HasPrefix(line, name+" ") {
			continue
		}
		for _, text := range texts {
			if !strings.Contains(line, text) {
				continue lines
			}
		}
		found = append(found, line)
	}
	return found
}

// TestRootRotation exchanges the mesh's root under new connections that each take a handshake of their own; not one fails.
// Certificates live for seconds, so that all are renewed, over and over, in each state of the rotation.
func TestRootRotation(t *testing.T) {
	const ttl, every = 16 * time.Second, 25 * time.Millisecond
	w := newWorld(t)
	w.Control.CA.SetTTL(ttl)
	n1, n2 := w.node("node1", "POOL_MAX_STREAMS_PER_CONNECTION=1"), w.node("node2", "POOL_MAX_STREAMS_PER_CONNECTION=1")
	client, server := w.captured(n1, "client"), w.captured(n2, "server")
	w.listen(server, ":8080", func(c *net.TCPConn) {
		defer c.Close()
		io.Copy(c, c)
	})
	w.settle()

	// Connections stay open, so that none gives its tunnel to another.
	var mu sync.Mutex
	var open []*net.TCPConn
	var failures []error
	made := 0
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			c, err := ping(client, addr(server, false, 8080))
			mu.Lock()
			made++
			if err != nil {
				failures = append(failures, fmt.Errorf("connection %d: %w", made, err))
			} else {
				open = append(open, c)
			}
			mu.Unlock()
		}
	}()
	stopped := sync.OnceFunc(func() { close(stop); <-done })
	defer func() {
		stopped()
		for _, c := range open {
			c.Close()
		}
	}()
	more := func(n int) {
		w.t.Helper()
		mu.Lock()
		goal := made + n
		mu.Unlock()
		w.eventually(fmt.Sprintf("%d more connections", n), func() error {
			mu.Lock()
			defer mu.Unlock()
			if made < goal {
				return errors.New("not yet")
			}
			return nil
		})
	}
	renewed := func() {
		w.t.Helper()
		before := map[*lab.Pod]int{client: w.Control.Issued(client.Identity()), server: w.Control.Issued(server.Identity())}
		for p, n := range before {
			w.eventually("a renewal of "+p.Name, func() error {
				if w.Control.Issued(p.Identity()) < n+1 {
					return errors.New("not yet")
				}
				return nil
			})
		}
	}

	w.roots(1)
	more(20)
	w.must(w.Control.CA.TellNewRoot())
	w.roots(2)
	w.Control.CA.UseNewRoot()
	renewed()
	more(20)
	w.must(w.Control.CA.WithdrawOldRoots())
	renewed()
	more(60)
	stopped()
	for _, err := range failures {
		t.Error(err)
	}
	t.Logf("%d connections", made)
	if got := w.lines(w.proxies[1], "istio_tcp_connections_failed_total", `reporter="destination"`); len(got) > 0 {
		t.Errorf("refused: %v", got)
	}
}

// roots waits until every proxy trusts so many.
func (w *world) roots(n int) {
	w.t.Helper()
	for _, p := range w.proxies {
		w.eventually(fmt.Sprintf("%d roots on %s", n, p.Node.Name), func() error {
			if got := w.lines(p, "ambit_root_expiry_timestamp_seconds"); len(got) != n {
				return fmt.Errorf("roots: %v", got)
			}
			return nil
		})
	}
}

// ping opens a connection to a server that sends back what comes, and leaves it open.
func ping(from *lab.Pod, to string) (*net.TCPConn, error) {
	c, err := from.Dial(to)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(ioTimeout))
	_, err = io.WriteString(c, "x")
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 1))
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	c.SetDeadline(time.Time{})
	return c, nil
}

// TestRevocation revokes a client's certificate: its live connection ends and it makes no other, until the list is emptied. Then
// a server's.
func TestRevocation(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	file, clientFile := filepath.Join(dir, "ca-crl.pem"), filepath.Join(dir, "client-crl.pem")
	n1, n2 := w.node("node1", "CRL_PATH="+clientFile), w.node("node2", "CRL_PATH="+file)
	client, other, server := w.captured(n1, "client"), w.captured(n1, "other"), w.captured(n2, "server")
	w.listen(server, ":8080", func(c *net.TCPConn) {
		defer c.Close()
		io.Copy(c, c)
	})
	w.settle()
	to := addr(server, false, 8080)
	live, err := ping(client, to)
	w.must(err)
	defer live.Close()
	spared, err := ping(other, to)
	w.must(err)
	defer spared.Close()

	list, err := w.Control.CA.Revoke(client.Identity())
	w.must(err)
	w.must(os.WriteFile(file, list, 0o600))
	live.SetReadDeadline(time.Now().Add(patience))
	if _, err := live.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the revoked client's connection: %v, want its end", err)
	}
	if c, err := ping(client, to); err == nil {
		c.Close()
		t.Error("the revoked client makes a new connection")
	}
	spared.SetDeadline(time.Now().Add(ioTimeout))
	if _, err := io.WriteString(spared, "y"); err != nil {
		t.Errorf("another client's connection: %v", err)
	} else if _, err := io.ReadFull(spared, make([]byte, 1)); err != nil {
		t.Errorf("another client's connection: %v", err)
	}
	w.logged(w.proxies[1], "CERT_REVOKED", "connection complete", client.Identity(), "is revoked by its issuer")
	w.logged(w.proxies[1], "CERT_REVOKED", "tunnel refused")
	w.logged(w.proxies[0], "TLS_FAILURE", server.IPv4.String())
	w.eventually("rejections are counted", func() error {
		if got := w.lines(w.proxies[1], "istio_crl_policy_rejections_total", `reporter="destination"`); len(got) != 1 || strings.HasSuffix(got[0], " 0\n") {
			return fmt.Errorf("rejections: %v", got)
		}
		return nil
	})
	counted := func(p *lab.Proxy, labels ...string) {
		t.Helper()
		for _, name := range []string{"istio_tcp_connections_closed_total", "istio_tcp_connections_failed_total"} {
			w.eventually(name+" tells of it on "+p.Node.Name, func() error {
				if len(w.lines(p, name, labels...)) == 0 {
					return errors.New("no such series")
				}
				return nil
			})
		}
	}
	counted(w.proxies[1], "CERT_REVOKED")

	w.must(os.WriteFile(file, nil, 0o600))
	w.eventually("the client is served again", func() error {
		c, err := ping(client, to)
		if err == nil {
			c.Close()
		}
		return err
	})

	// The other way round: the client's node finds the server revoked.
	list, err = w.Control.CA.Revoke(server.Identity())
	w.must(err)
	w.must(os.WriteFile(clientFile, list, 0o600))
	spared.SetReadDeadline(time.Now().Add(patience))
	if _, err := spared.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection to the revoked server: %v, want its end", err)
	}
	if c, err := ping(other, to); err == nil {
		c.Close()
		t.Error("a new connection to the revoked server works")
	}
	counted(w.proxies[0], "CERT_REVOKED", `reporter="source"`)
}

// TestCompliance: proxies in Go's FIPS 140-3 mode, one of which fails whatever is not approved, and one that takes only post-quantum
// key exchange serve each other, and the last refuses a client that has only classic ones.
func TestCompliance(t *testing.T) {
	w := newWorld(t)
	n1 := w.node("node1", "GODEBUG=fips140=on", "COMPLIANCE_POLICY=fips-140-3") // which does not start unless the mode is on
	n2 := w.node("node2", "COMPLIANCE_POLICY=pqc")
	n3 := w.node("node3", "GODEBUG=fips140=only", "COMPLIANCE_POLICY=fips-140-3")
	fips, pqc, only, plain := w.captured(n1, "fips"), w.captured(n2, "pqc"), w.captured(n3, "only"), w.pod(n2, "plain")
	captured := []*lab.Pod{fips, pqc, only}
	for _, p := range captured {
		w.listen(p, ":8080", echo)
	}
	w.settle()
	for _, from := range captured {
		for _, to := range captured {
			if from != to {
				w.expect(from, addr(to, false, 8080), from.IPv4)
			}
		}
	}
	cert, _, err := w.Control.SignIdentity(plain.Identity())
	w.must(err)
	for _, tc := range []struct {
		group tls.CurveID
		to    *lab.Pod
		good  bool
	}{{tls.X25519MLKEM768, pqc, true}, {tls.X25519, pqc, false}, {tls.CurveP256, pqc, false}, {tls.CurveP256, fips, true},
		{tls.CurveP256, only, true}, {tls.X25519, fips, false}, {tls.X25519, only, false}} {
		raw, err := plain.Dial(addr(tc.to, false, 15008))
		w.must(err)
		raw.SetDeadline(time.Now().Add(ioTimeout))
		conn := tls.Client(raw, &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, InsecureSkipVerify: true,
			Certificates: []tls.Certificate{*cert}, CurvePreferences: []tls.CurveID{tc.group}})
		if err := conn.Handshake(); (err == nil) != tc.good {
			t.Errorf("%v to %s: %v, want it to work: %v", tc.group, tc.to.Name, err, tc.good)
		}
		raw.Close()
	}
}

// TestTrustDomainAlias: a pod of an alias of the mesh's trust domain is served, as policies say of it. Once the alias is withdrawn
// its live connections end and it makes no other.
func TestTrustDomainAlias(t *testing.T) {
	const own, old = "cluster.local", "old.example"
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	server, client, other, spared := w.captured(n1, "server"), w.captured(n2, "client"), w.captured(n2, "other"), w.captured(n2, "spared")
	for _, p := range []*lab.Pod{client, other} {
		a := p.Address(true)
		a.GetWorkload().TrustDomain = old
		w.Control.SetAddresses(a)
	}
	for _, port := range []string{":8080", ":8081"} {
		w.listen(server, port, func(c *net.TCPConn) {
			defer c.Close()
			io.Copy(c, c)
		})
	}
	account := func(domain string, p *lab.Pod) *security.StringMatch {
		return &security.StringMatch{MatchType: &security.StringMatch_Exact{Exact: domain + "/ns/default/sa/" + p.ServiceAccount}}
	}
	// As the control plane sends it while the alias is one. It stays, so that no policy refuses what is refused later.
	w.Control.SetAuthorizations(&security.Authorization{
		Name: "some", Namespace: "default", Scope: security.Scope_NAMESPACE, Action: security.Action_ALLOW,
		Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{{
			Principals: []*security.StringMatch{account(own, client), account(old, client), account(own, spared), account(old, spared)},
		}}}}}},
	}, deny("no-8081", client, 8081)) // under the mesh's own name alone, as one that is on its way
	w.settle()
	refused := func(from *lab.Pod, port int, why ...string) {
		t.Helper()
		if c, err := ping(from, addr(server, false, port)); err == nil {
			c.Close()
			t.Errorf("%s is served on port %d", from.Name, port)
		}
		w.logged(w.proxies[0], why...)
	}
	served := func(from *lab.Pod) (c *net.TCPConn) {
		t.Helper()
		w.eventually(from.Name+" is served", func() (err error) {
			c, err = ping(from, addr(server, false, 8080))
			return err
		})
		t.Cleanup(func() { c.Close() })
		return c
	}
	refused(client, 8080, "TLS_FAILURE", "tunnel refused", "spiffe://"+old+"/ns/default/sa/client", "accepted trust domains are "+own)

	w.Control.SetSettings(&extension.Settings{TrustDomain: own, TrustDomainAliases: []string{old}})
	live, bystander := served(client), served(spared)
	refused(other, 8080, "DENY", "spiffe://"+old+"/ns/default/sa/other", "no ALLOW policy matches")
	refused(client, 8081, "DENY", "spiffe://"+old+"/ns/default/sa/client", "default/no-8081")

	begun := time.Now()
	w.Control.SetSettings(&extension.Settings{TrustDomain: own})
	live.SetReadDeadline(time.Now().Add(patience))
	if _, err := live.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection of a pod whose alias is withdrawn: %v, want its end", err)
	}
	t.Logf("it ended after %s", time.Since(begun))
	w.logged(w.proxies[0], "TLS_FAILURE", "connection complete", "spiffe://"+old+"/ns/default/sa/client", "accepted trust domains are "+own)
	refused(client, 8080)
	bystander.SetDeadline(time.Now().Add(ioTimeout))
	if _, err := io.WriteString(bystander, "y"); err != nil {
		t.Errorf("another pod's connection: %v", err)
	} else if _, err := io.ReadFull(bystander, make([]byte, 1)); err != nil {
		t.Errorf("another pod's connection: %v", err)
	}
}
