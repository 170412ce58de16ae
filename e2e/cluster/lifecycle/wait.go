package lifecycle

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/e2e/cluster/kernel"
	"github.com/ambit-mesh/ambit/e2e/cluster/plan"
)

// Limits of the steps of a start. They are generous: a machine that also compiles is several times slower than an idle
// one.
const (
	apiTimeout   = 2 * time.Minute // from the start of etcd to a ready API server
	nodeTimeout  = 2 * time.Minute // from there to two Ready nodes
	dnsTimeout   = 2 * time.Minute // from there to answers from CoreDNS
	loadTimeout  = 5 * time.Minute // one import of images on one node
	tryEvery     = 100 * time.Millisecond
	tailLines    = 20
	firstSuccess = "kubernetes.default.svc." + plan.Domain + "."
)

// waiter waits for a cluster that was started, and explains what does not come.
type waiter struct {
	cluster *Cluster
	plan    plan.Plan
	record  *record
}

// first brings a cluster whose machines were just started to where it can be used.
func (w waiter) first(ctx context.Context, images []string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	loads := make(chan error, len(w.plan.Nodes))
	var running sync.WaitGroup
	defer running.Wait()
	for _, n := range w.plan.Nodes {
		running.Go(func() { loads <- w.loadFirst(ctx, n, images) })
	}
	begin := time.Now()
	if err := w.api(ctx); err != nil {
		return err
	}
	w.cluster.notef("  API server ready   %s", since(begin))
	if err := w.apply(ctx); err != nil {
		return err
	}
	for range w.plan.Nodes {
		if err := <-loads; err != nil {
			return err
		}
	}
	if err := w.nodes(ctx); err != nil {
		return err
	}
	w.cluster.notef("  nodes Ready        %s", since(begin))
	if err := w.dns(ctx); err != nil {
		return err
	}
	w.cluster.notef("  CoreDNS answers    %s", since(begin))
	return nil
}

// ready waits for a cluster that was up before.
func (w waiter) ready(ctx context.Context) error {
	if err := w.api(ctx); err != nil {
		return err
	}
	if err := w.nodes(ctx); err != nil {
		return err
	}
	return w.dns(ctx)
}

// rebooted waits until the node's kubelet has reported the boot ID and the node is Ready.
func (w waiter) rebooted(ctx context.Context, n plan.Node, bootID string) error {
	return w.until(ctx, n.Name+" to be Ready again", nodeTimeout, w.nodeLogs(n.Name), func(ctx context.Context) error {
		out, err := w.kubectl(ctx, nil, "get", "node", n.Name, "-o",
			`jsonpath={.status.nodeInfo.bootID} {.status.conditions[?(@.type=="Ready")].status}`)
		if err != nil {
			return err
		}
		if out != bootID+" True" {
			return errors.New("the kubelet has not reported yet")
		}
		return nil
	})
}

// api waits until the API server says that it is ready.
func (w waiter) api(ctx context.Context) error {
	ca, err := os.ReadFile(filepath.Join(w.plan.Secrets(), "ca.crt"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Timeout: 5 * time.Second, Transport: transport}
	logs := []string{w.log(plan.ControlPlane, "etcd"), w.log(plan.ControlPlane, "kube-apiserver")}
	return w.until(ctx, "the API server to be ready", apiTimeout, logs, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.plan.Server()+"/readyz", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096)) // only for the message
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(body))
		}
		return nil
	})
}

// apply creates what the cluster begins with.
func (w waiter) apply(ctx context.Context) error {
	manifests, err := w.plan.Manifests()
	if err != nil {
		return err
	}
	for _, n := range w.plan.Nodes {
		object, err := n.NodeObject()
		if err != nil {
			return err
		}
		manifests = append(append(manifests, "\n---\n"...), object...)
	}
	logs := []string{w.log(plan.ControlPlane, "kube-apiserver")}
	// The API server says that it is ready a moment before it accepts everything.
	return w.until(ctx, "the API server to take the first objects", apiTimeout, logs, func(ctx context.Context) error {
		_, err := w.kubectl(ctx, manifests, "apply", "--server-side", "--force-conflicts", "-f", "-")
		return err
	})
}

// nodes waits until every node is Ready.
func (w waiter) nodes(ctx context.Context) error {
	var logs []string
	for _, n := range w.plan.Nodes {
		logs = append(logs, w.nodeLogs(n.Name)...)
	}
	return w.until(ctx, "the nodes to be Ready", nodeTimeout, logs, func(ctx context.Context) error {
		_, err := w.kubectl(ctx, nil, "wait", "--for=condition=Ready", "node", "--all", "--timeout=5s")
		return err
	})
}

// dns waits until CoreDNS is rolled out and answers on every node by its Service.
func (w waiter) dns(ctx context.Context) error {
	var logs []string
	for _, n := range w.plan.Nodes {
		logs = append(logs, w.nodeLogs(n.Name)...)
	}
	err := w.until(ctx, "CoreDNS to be rolled out", dnsTimeout, logs, func(ctx context.Context) error {
		_, err := w.kubectl(ctx, nil, "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=5s")
		if err != nil {
			pods, _ := w.kubectl(ctx, nil, "-n", "kube-system", "get", "pods,events", "-o", "wide") // only for the message
			err = fmt.Errorf("%w\n%s", err, pods)
		}
		return err
	})
	if err != nil {
		return err
	}
	want := w.plan.ServiceRanges[0].Addr().Next()
	for _, n := range w.plan.Nodes {
		logs := []string{w.log(n.Name, "kube-proxy")}
		err := w.until(ctx, "CoreDNS to answer on "+n.Name, dnsTimeout, logs, func(ctx context.Context) error {
			return askDNS(ctx, n.NetNS, netip.AddrPortFrom(w.plan.DNS, 53), want)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// askDNS asks the server, from inside a network namespace, for the API server's Service.
func askDNS(ctx context.Context, netns string, server netip.AddrPort, want netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (conn net.Conn, err error) {
		err = kernel.InNetNS(netns, func() error {
			var d net.Dialer
			conn, err = d.DialContext(ctx, network, server.String())
			return err
		})
		return conn, err
	}}
	family := "ip4"
	if want.Is6() {
		family = "ip6"
	}
	have, err := resolver.LookupNetIP(ctx, family, firstSuccess)
	if err != nil {
		return err
	}
	if len(have) != 1 || have[0].Unmap() != want {
		return fmt.Errorf("%s is %v for CoreDNS, want %s", firstSuccess, have, want)
	}
	return nil
}

// until tries f until it succeeds. A machine that ended ends the wait; the error shows the ends of the logs.
func (w waiter) until(ctx context.Context, what string, limit time.Duration, logs []string, f func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		last := f(limited)
		if last == nil {
			return nil
		}
		for name, init := range w.record.Machines {
			if !init.Alive() {
				return fmt.Errorf("wait for %s: machine %s has ended%s", what, name, tails([]string{initLog(w.plan, name)}))
			}
		}
		if err := wait(limited, tryEvery); err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("wait for %s: %w", what, ctx.Err())
			}
			return fmt.Errorf("wait for %s: not within %s: %w%s", what, limit, last, tails(logs))
		}
	}
}

func (w waiter) log(machine, service string) string {
	return filepath.Join(w.plan.Logs(machine), service+".log")
}

func (w waiter) nodeLogs(node string) []string {
	return []string{w.log(node, "containerd"), w.log(node, "kubelet")}
}

// tails returns the last lines of the logs, each below its name.
func tails(logs []string) string {
	var b strings.Builder
	for _, path := range logs {
		fmt.Fprintf(&b, "\n--- end of %s\n", path)
		data, err := os.ReadFile(path)
		if err != nil {
			fmt.Fprintf(&b, "(%v)\n", err)
			continue
		}
		lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
		b.WriteString(strings.Join(lines[max(0, len(lines)-tailLines):], "\n"))
	}
	return b.String()
}

// kubectl runs the cluster's own kubectl and returns what it prints.
func (w waiter) kubectl(ctx context.Context, stdin []byte, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(w.plan.BinDir, "kubectl"),
		append([]string{"--kubeconfig", w.cluster.Kubeconfig(), "--cache-dir", filepath.Join(w.plan.StateDir, "kubectl")}, args...)...)
	cmd.Stdin = bytes.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s", args[0], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(stdout.String()), nil
}
