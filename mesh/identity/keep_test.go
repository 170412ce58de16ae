package identity_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/identity/identitytest"
)

// TestCertificateOutlivesItsProcess issues an identity, and has a second manager, whose CA is away, prove to be the same.
func TestCertificateOutlivesItsProcess(t *testing.T) {
	memory, err := os.MkdirTemp("/dev/shm", "ambit-t-")
	if err != nil {
		t.Skipf("skipped: no folder in memory: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(memory) })
	keep, err := identity.OpenKeyDir(filepath.Join(memory, "keys"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Skipf("skipped: %v", err)
	}
	ca, err := identitytest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	id := identity.Identity{TrustDomain: "td", Namespace: "ns", ServiceAccount: "a"}
	other := id
	other.ServiceAccount = "b"
	manage := func(issuer *fakeIssuer, f func(*identity.Manager)) {
		m := identity.NewManager(identity.ManagerConfig{Issuer: issuer, Keep: keep, Logger: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		f(m)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	var first *identity.SVID
	manage(&fakeIssuer{ca: ca}, func(m *identity.Manager) {
		if first, err = m.SVID(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	})
	away := &fakeIssuer{ca: ca, err: errors.New("away")}
	manage(away, func(m *identity.Manager) {
		second, err := m.SVID(t.Context(), id)
		if err != nil {
			t.Fatalf("with the CA away: %v", err)
		}
		if !second.TLS.Leaf.Equal(first.TLS.Leaf) {
			t.Error("it is another certificate")
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := m.SVID(ended, other); err == nil {
			t.Error("an identity that was never issued has a certificate")
		}
	})
	files, err := filepath.Glob(filepath.Join(memory, "keys", "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v, %v", files, err)
	}
	if info, err := os.Stat(files[0]); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := os.WriteFile(files[0], []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	manage(&fakeIssuer{ca: ca}, func(m *identity.Manager) {
		if third, err := m.SVID(t.Context(), id); err != nil || third.TLS.Leaf.Equal(first.TLS.Leaf) {
			t.Errorf("of a damaged file comes %v, %v", third, err)
		}
	})
}
