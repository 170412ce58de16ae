package scale

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/api"
)

// restTime is how long ztunnel is left alone after it has everything, before its memory is looked at.
const restTime = 10 * time.Second

// ztunnel starts the node proxy itself, without a CNI agent and so without pods of its own, and compares what it knows with what is
// there. Its readiness port cannot be set, so nobody else may have it.
func (m *measurement) ztunnel(ctx context.Context) (err error) {
	admin, err := freePort()
	if err != nil {
		return err
	}
	stats, err := freePort()
	if err != nil {
		return err
	}
	_, adminPort, _ := net.SplitHostPort(admin) // freePort's are well-formed
	_, statsPort, _ := net.SplitHostPort(stats)
	token := filepath.Join(m.dir, "no-token") // nobody looks at it: the plaintext port asks for none
	if err := os.WriteFile(token, []byte("none"), 0o600); err != nil {
		return err
	}
	begin := time.Now()
	p, err := start("ztunnel", filepath.Join(m.dir, "ztunnel.log"), []string{
		"XDS_ADDRESS=" + m.xds, "CA_ADDRESS=" + m.xds, "AUTH_TOKEN=" + token, "NODE_NAME=" + pod(0).node(), "POD_NAME=ztunnel-0", "POD_NAMESPACE=" + api.DefaultNamespace,
		fmt.Sprintf("PROXY_CONFIG={proxyAdminPort: %s, statsPort: %s}", adminPort, statsPort),
		"INPOD_UDS=" + filepath.Join(m.dir, "no-agent"), "CONNECTION_TERMINATION_DEADLINE=1s",
	}, nil, nil, m.binaries.Ztunnel, "proxy", "ztunnel")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	ready := fmt.Sprintf("http://127.0.0.1:%d/healthz/ready", api.PortReadiness)
	err = p.await(ctx, "has everything", startGrace, func(ctx context.Context) error {
		// It waits for an agent then, and for nothing else.
		if err := get(ctx, http.DefaultClient, ready); err != nil && (!strings.Contains(err.Error(), "pending: pods") || strings.Contains(err.Error(), "control plane")) {
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	r := m.result
	r.Ztunnel = time.Since(begin)
	u, err := p.usage()
	if err != nil {
		return err
	}
	r.ZtunnelRSS, r.ZtunnelPeak = u.rss, u.peak
	select {
	case <-time.After(restTime):
	case <-p.done:
		return p.ended()
	case <-ctx.Done():
		return ctx.Err()
	}
	if u, err = p.usage(); err != nil {
		return err
	}
	r.ZtunnelRested = u.rss
	return m.compare(ctx, "http://"+admin+"/config_dump")
}

// compare compares the pods of a config_dump with those that there are.
func (m *measurement) compare(ctx context.Context, address string) error {
	want := m.config.Pods + m.config.Created // as many were deleted as were created while the subscriber was away
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask ztunnel what it knows: %w", err)
	}
	defer resp.Body.Close()
	revisions, err := readDump(resp.Body)
	if err != nil {
		return fmt.Errorf("ask ztunnel what it knows: %w", err)
	}
	if len(revisions) != want {
		return fmt.Errorf("ztunnel knows %d workloads, there are %d pods", len(revisions), want)
	}
	m.proxy.mu.Lock()
	defer m.proxy.mu.Unlock()
	for name, s := range m.proxy.known {
		if revision, ok := revisions[name]; !s.removed && s.revision != "" && revision != s.revision || ok && s.removed {
			return fmt.Errorf("ztunnel has %s at revision %q, the subscriber at %q (removed: %t)", name, revision, s.revision, s.removed)
		}
	}
	return nil
}

// readDump returns the canonical revisions of a config_dump's workloads, by key.
func readDump(in io.Reader) (map[string]string, error) {
	out := map[string]string{}
	d := json.NewDecoder(in)
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		if t != "workloads" {
			continue
		}
		if _, err := d.Token(); err != nil { // [
			return nil, err
		}
		for d.More() {
			var w struct{ UID, CanonicalRevision string }
			if err := d.Decode(&w); err != nil {
				return nil, err
			}
			out[w.UID] = w.CanonicalRevision
		}
		return out, nil
	}
	return nil, errors.New("no workloads in the config_dump")
}
