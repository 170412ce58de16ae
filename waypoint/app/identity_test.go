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
	// Its tunnel would serve it on if it were not ended.
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", r.log.String())
		}
	})
	await(t, "the revoked client is served no more", func() bool { return ask(revoked) != nil })
	if err := ask(revoked); err == nil {
		t.Error("a client whose certificate is revoked is served again")
	}
	if err := ask(welcome); err != nil {
		t.Errorf("a client whose certificate is not revoked: %v", err)
	}
	await(t, "its refusal is logged", func() bool { return strings.Contains(r.log.String(), "a tunnel connection was refused") })
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
	await(t, "the client is served no more, though it has a tunnel", func() bool { return ask(client) != nil })
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
