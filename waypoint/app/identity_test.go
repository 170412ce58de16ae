package app

import (
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/extension"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

// TestRevocation: once a list comes that revokes a client, its tunnel ends and it opens no other; others go on in theirs.
func TestRevocation(t *testing.T) {
	list := filepath.Join(t.TempDir(), "ca-crl.pem")
	r := runWaypoint(t, "CRL_PATH="+list)
	good, bad := mustSVID(t, r.plane.ca, clientID), mustSVID(t, r.plane.ca, clientID)
	welcome, revoked := r.client(t, good), r.client(t, bad)
	if err := ask(welcome); err != nil {
		t.Fatal(err)
	}
	if err := ask(revoked); err != nil {
		t.Fatal(err)
	}
	r.revoke(t, list, bad.TLS.Leaf)
	await(t, "the tunnel of the revoked client is ended", func() bool { return strings.Contains(r.log.String(), "tunnels were ended") })
	if err := ask(revoked); err == nil {
		t.Error("a client whose certificate is revoked is served")
	}
	if err := ask(welcome); err != nil {
		t.Errorf("a client whose certificate is not revoked: %v", err)
	}
	if got := r.log.String(); !strings.Contains(got, "clients=1 backends=0") || !strings.Contains(got, "a tunnel connection was refused") {
		t.Errorf("log:\n%s", got)
	}
}

// revoke writes a revocation list where the waypoint reads it.
func (r *running) revoke(t *testing.T, file string, certs ...*x509.Certificate) {
	t.Helper()
	text, err := r.plane.ca.CRL(time.Now().Add(time.Hour), certs...)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file+".new", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// TestAliases: clients of another trust domain are served while the control plane says that it is one with the mesh's.
func TestAliases(t *testing.T) {
	r := runWaypoint(t)
	old := identity.Identity{TrustDomain: "old.example", Namespace: "shop", ServiceAccount: "curl"}
	client := r.client(t, mustSVID(t, r.plane.ca, old))
	if err := ask(client); err == nil {
		t.Fatal("a client of a foreign trust domain is served")
	}
	r.tell(t, "old.example")
	await(t, "the client is served under the alias", func() bool { return ask(client) == nil })
	r.tell(t)
	await(t, "its tunnel is ended", func() bool { return strings.Contains(r.log.String(), "clients=1 backends=0") })
	if err := ask(client); err == nil {
		t.Error("a client is served under an alias that was withdrawn")
	}
}

// tell has the control plane tell the mesh's settings.
func (r *running) tell(t *testing.T, aliases ...string) {
	t.Helper()
	content, err := anypb.New(&extension.Settings{TrustDomain: "cluster.local", TrustDomainAliases: aliases})
	if err != nil {
		t.Fatal(err)
	}
	r.plane.mu.Lock()
	push := r.plane.push
	r.plane.mu.Unlock()
	version := fmt.Sprint(len(aliases))
	if err := push(extension.Type, &discoveryv3.Resource{Name: extension.Mesh, Version: version, Resource: content}); err != nil {
		t.Fatal(err)
	}
}
