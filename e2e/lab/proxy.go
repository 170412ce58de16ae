package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/api/workload"
	zdsapi "github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/cni/rules"
	"github.com/ambit-mesh/ambit/cni/zds"
	"github.com/ambit-mesh/ambit/mesh/handover"
)

// Node is a node: a namespace for its proxies and an agent's ZDS server before them.
type Node struct {
	*Host
	// Agent tells the node's proxies which pods they serve.
	Agent *zds.Server
	// Socket is where it listens.
	Socket string
	// Depot keeps the proxies' sockets, as the agent does; nil for an agent of the release that had none.
	Depot *handover.Depot
	// Output, if not nil, is where the output of proxies goes that are started from now on. It is the caller's.
	Output *os.File

	lab    *Lab
	cancel context.CancelFunc
	done   chan error

	mu        *sync.Mutex // guards Depot and stopDepot
	stopDepot func()
}

// AddNode makes a node. It has no proxy yet.
func (l *Lab) AddNode(name string) (*Node, error) {
	n, err := l.AddOldNode(name)
	if err != nil {
		return nil, err
	}
	if err := n.StartDepot(); err != nil {
		return nil, fmt.Errorf("add node %s: %w", name, err)
	}
	l.OnClose(func() error { n.StopDepot(); return nil })
	return n, nil
}

// StartDepot begins to keep the proxies' sockets.
func (n *Node) StartDepot() error {
	ln, err := handover.Listen(n.Socket + api.DepotSuffix)
	if err != nil {
		return err
	}
	logger := n.lab.logger.With("node", n.Name)
	depot := handover.NewDepot(handover.DepotConfig{Pods: n.Agent, Logger: logger})
	ctx, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	parts.Go(func() { depot.Run(ctx) })
	parts.Go(func() {
		s := handover.Server{Name: "depot of " + n.Name, Holder: depot, Logger: logger}
		if err := s.Serve(ctx, ln); err != nil {
			logger.Error("depot ended", "error", err)
		}
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	n.Depot = depot
	n.stopDepot = func() { cancel(); parts.Wait(); depot.Close() }
	return nil
}

// StopDepot ends it, as when the agent ends. A second call does nothing.
func (n *Node) StopDepot() {
	n.mu.Lock()
	stop := n.stopDepot
	n.Depot, n.stopDepot = nil, nil
	n.mu.Unlock()
	if stop != nil {
		stop()
	}
}

func (n *Node) forgotten(ns handover.NetNS) {
	n.mu.Lock()
	depot := n.Depot
	n.mu.Unlock()
	if depot != nil {
		depot.Forget(ns)
	}
}

// AddOldNode makes a node whose agent keeps no sockets.
func (l *Lab) AddOldNode(name string) (*Node, error) {
	h, err := l.AddHost(name)
	if err != nil {
		return nil, err
	}
	n := &Node{Host: h, Socket: filepath.Join(l.dir, name+"-zds.sock"), lab: l, done: make(chan error, 1), mu: new(sync.Mutex)}
	ln, err := zds.Listen(n.Socket)
	if err != nil {
		return nil, fmt.Errorf("add node %s: %w", name, err)
	}
	n.Agent = zds.NewServer(zds.Config{Logger: l.logger.With("node", name), Forgotten: n.forgotten})
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	go func() { n.done <- n.Agent.Serve(ctx, ln) }()
	l.OnClose(n.close)
	return n, nil
}

func (n *Node) close() error {
	n.cancel()
	return <-n.done
}

// Pod is a host that is a workload of the mesh.
type Pod struct {
	*Host
	Node           *Node
	Namespace      string
	ServiceAccount string
	UID            string
	// Resolver is told to proxies that ask how the pod resolves names; nil: not known.
	Resolver *zdsapi.Resolver
}

// AddPod makes a pod in Kubernetes namespace "default", whose service account has the pod's name. The control plane
// does not know it and no proxy serves it yet.
func (n *Node) AddPod(name string) (*Pod, error) { return n.AddPodOf(n.lab.family, name) }

// AddPodOf is AddPod for a pod of one family in a lab that has both.
func (n *Node) AddPodOf(f Family, name string) (*Pod, error) {
	h, err := n.lab.AddHostOf(f, name)
	if err != nil {
		return nil, err
	}
	return &Pod{Host: h, Node: n, Namespace: "default", ServiceAccount: name, UID: "uid-" + name}, nil
}

// Identity is the pod's SPIFFE identity.
func (p *Pod) Identity() string {
	return "spiffe://cluster.local/ns/" + p.Namespace + "/sa/" + p.ServiceAccount
}

// Workload describes the pod as the control plane would: in HBONE if it is captured.
func (p *Pod) Workload(captured bool) *workload.Workload {
	w := &workload.Workload{
		Uid: "Kubernetes//Pod/" + p.Namespace + "/" + p.Name, Name: p.Name, Namespace: p.Namespace,
		ServiceAccount: p.ServiceAccount, Node: p.Node.Name, CanonicalName: p.Name, WorkloadName: p.Name,
		WorkloadType: workload.WorkloadType_DEPLOYMENT, CanonicalRevision: "latest", ClusterId: "Kubernetes",
	}
	for _, a := range p.Addrs() {
		w.Addresses = append(w.Addresses, a.AsSlice())
	}
	if captured {
		w.TunnelProtocol = workload.TunnelProtocol_HBONE
	}
	return w
}

// Address wraps the workload as a resource.
func (p *Pod) Address(captured bool) *workload.Address {
	return &workload.Address{Type: &workload.Address_Workload{Workload: p.Workload(captured)}}
}

// Capture puts the redirect rules into the pod, gives it to its node's newest proxy, waits for the answer, and tells the
// control plane that peers may use HBONE.
func (p *Pod) Capture(ctx context.Context) error {
	if err := p.Node.lab.Kernel.Apply(ctx, p.Handle(), rules.For(rules.Config{IPv6: true})); err != nil {
		return fmt.Errorf("capture pod %s: %w", p.Name, err)
	}
	p.Node.lab.Control.SetAddresses(p.Address(true))
	return p.Offer(ctx)
}

// Offer gives the pod to its node's newest proxy and waits for the answer; it changes no rules.
func (p *Pod) Offer(ctx context.Context) error {
	f, err := os.Open(p.Path)
	if err != nil {
		return fmt.Errorf("offer pod %s: %w", p.Name, err)
	}
	defer f.Close()
	err = p.Node.Agent.Add(ctx, zds.Pod{UID: p.UID, Name: p.Name, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount, NetNS: f,
		Resolver: p.Resolver})
	if err != nil {
		return fmt.Errorf("offer pod %s: %w", p.Name, err)
	}
	return nil
}

// Proxy is a running ztunnel process.
type Proxy struct {
	Node *Node
	// Log is the file that its output goes to, unless its Node's Output is set.
	Log string

	host   *Host // where it runs
	cmd    *exec.Cmd
	maxLog int64
	exited chan struct{}
	mu     sync.Mutex
	err    error // guarded by mu; how it ended
}

// ErrLogTooLong is how a process has ended whose log has grown beyond Config.MaxLog: it was killed.
var ErrLogTooLong = errors.New("its log has grown beyond all bounds")

// StartProxy runs a ztunnel binary on the node, as its DaemonSet would. Extra environment goes last, as NAME=value.
func (n *Node) StartProxy(binary string, env ...string) (*Proxy, error) {
	control := n.lab.Control
	p := &Proxy{Node: n, host: n.Host}
	p.cmd = exec.Command(binary, "proxy", "ztunnel")
	p.cmd.Env = append(append([]string{
		"AUTH_TOKEN=" + control.TokenFile,
		"INPOD_UDS=" + n.Socket, "NODE_NAME=" + n.Name, "POD_NAME=ztunnel-" + n.Name, "POD_NAMESPACE=istio-system",
		"INSTANCE_IP=" + n.Addrs()[0].String(), "SERVICE_ACCOUNT=ztunnel", "CLUSTER_ID=Kubernetes",
		"TERMINATION_GRACE_PERIOD_SECONDS=30", "ISTIO_META_DNS_CAPTURE=false",
	}, control.environ()...), env...)
	if err := p.start("ztunnel"); err != nil {
		return nil, err
	}
	return p, nil
}

// environ tells a proxy where the control plane is, and whom to trust.
func (c *Control) environ() []string {
	return []string{
		"PATH=" + os.Getenv("PATH"),
		"XDS_ADDRESS=https://" + c.Addr, "CA_ADDRESS=https://" + c.Addr,
		"XDS_ROOT_CA=" + c.RootFile, "CA_ROOT_CA=" + c.RootFile, "AMBIT_TRUST_BUNDLE=" + c.RootFile,
	}
}

// start starts the process, which is of that kind, until the lab closes.
func (p *Proxy) start(kind string) error {
	n := p.Node
	log, err := os.CreateTemp(n.lab.dir, p.host.Name+"-"+kind+"-*.log")
	if err != nil {
		return fmt.Errorf("start proxy on %s: %w", p.host.Name, err)
	}
	defer log.Close()
	p.Log, p.maxLog, p.exited = log.Name(), n.lab.maxLog, make(chan struct{})
	output := log
	if n.Output != nil {
		output = n.Output
	}
	p.cmd.Stdout, p.cmd.Stderr = output, output
	p.cmd.Dir = n.lab.dir
	if err := p.host.Start(p.cmd); err != nil {
		return fmt.Errorf("start proxy on %s: %w", p.host.Name, err)
	}
	go func() {
		defer close(p.exited)
		err := p.watch()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
	}()
	n.lab.OnClose(func() error { p.Kill(); return nil })
	return nil
}

// watch waits for the process, returns how it ended, and ends it should its log fill the disk.
func (p *Proxy) watch() error {
	ended := make(chan error, 1)
	go func() { ended <- p.cmd.Wait() }()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-tick.C:
		}
		if info, err := os.Stat(p.Log); err != nil || info.Size() <= p.maxLog {
			continue
		}
		_ = p.cmd.Process.Kill() // it may have ended by itself
		return errors.Join(fmt.Errorf("proxy on %s: %w", p.Node.Name, ErrLogTooLong), <-ended, os.Truncate(p.Log, p.maxLog))
	}
}

// PID is the process id.
func (p *Proxy) PID() int { return p.cmd.Process.Pid }

// Exited is closed once the process has ended.
func (p *Proxy) Exited() <-chan struct{} { return p.exited }

// Signal sends a signal, if the process is still there.
func (p *Proxy) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// Kill ends the process without grace and waits for its end.
func (p *Proxy) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended by itself
	<-p.exited
}

// Wait returns how the process ended, once it has.
func (p *Proxy) Wait(ctx context.Context) error {
	select {
	case <-p.exited:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("wait for proxy on %s: %w", p.Node.Name, ctx.Err())
	}
}

// Get asks one of the process's own HTTP ports, on loopback of its node, e.g. Get(ctx, 15021, "/healthz/ready").
func (p *Proxy) Get(ctx context.Context, port int, path string) (int, string, error) {
	return p.do(ctx, http.MethodGet, port, path)
}

// Post is Get with the method POST.
func (p *Proxy) Post(ctx context.Context, port int, path string) (int, string, error) {
	return p.do(ctx, http.MethodPost, port, path)
}

func (p *Proxy) do(ctx context.Context, method string, port int, path string) (int, string, error) {
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return p.host.Dial(addr) },
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+addr+path, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// WaitReady waits until the process says that it is ready; it fails with the end of its log if it does not in time, or
// ends.
func (p *Proxy) WaitReady(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if code, _, err := p.Get(ctx, 15021, "/healthz/ready"); err == nil && code == http.StatusOK {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.exited:
			return fmt.Errorf("proxy on %s ended before it was ready: %w\n%s", p.Node.Name, p.Wait(ctx), p.LogTail())
		case <-ctx.Done():
			return fmt.Errorf("proxy on %s is not ready: %w\n%s", p.Node.Name, ctx.Err(), p.LogTail())
		}
	}
}

// LogTail returns the end of the log, at most 8 KiB.
func (p *Proxy) LogTail() string {
	const most = 8 << 10
	f, err := os.Open(p.Log)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err == nil && size > most {
		_, err = f.Seek(-most, io.SeekEnd)
		if err != nil {
			return err.Error()
		}
	} else if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err.Error()
	}
	body, err := io.ReadAll(f)
	return string(body) + errText(err)
}

func errText(err error) string {
	if err == nil || errors.Is(err, io.EOF) {
		return ""
	}
	return err.Error()
}
