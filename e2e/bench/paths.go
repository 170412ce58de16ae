package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/e2e/bench/process"
	"github.com/ambit-mesh/ambit/e2e/lab"
)

// Path is a way from the client pod to the server pod.
type Path struct {
	Name string
	// Client and Server are the proxies' binaries on either side; both empty: bare TCP, or Plain.
	Client, Server string
	// Plain puts two plain TCP proxies in a row between the pods.
	Plain bool
	// SameNode puts both pods on the client's node.
	SameNode bool
	// Workloads is how many more workloads the control plane tells of.
	Workloads int
}

const setUp = 60 * time.Second

// site is a path that stands: processes run, pods are captured.
type site struct {
	lab     *lab.Lab
	self    string // this program
	client  *lab.Host
	target  string
	proxies []int
}

func (p Path) build(ctx context.Context, self, dir string) (*site, error) {
	ctx, cancel := context.WithTimeout(ctx, setUp)
	defer cancel()
	l, err := lab.New(ctx, lab.Config{Dir: dir})
	if err != nil {
		return nil, err
	}
	s := &site{lab: l, self: self}
	if err := p.fill(ctx, s); err != nil {
		return nil, errors.Join(fmt.Errorf("build path %s: %w", p.Name, err), l.Close())
	}
	return s, nil
}

func (p Path) fill(ctx context.Context, s *site) error {
	near, err := s.lab.AddNode("near")
	if err != nil {
		return err
	}
	far := near
	if !p.SameNode {
		if far, err = s.lab.AddNode("far"); err != nil {
			return err
		}
	}
	client, err := near.AddPod("client")
	if err != nil {
		return err
	}
	server, err := far.AddPod("server")
	if err != nil {
		return err
	}
	s.client, s.target = client.Host, server.IPv4.String()
	if err := s.start(server.Host, nil, "serve"); err != nil {
		return err
	}
	switch {
	case p.Plain:
		s.target = near.IPv4.String()
		if err := s.start(far.Host, &s.proxies, "forward", server.IPv4.String()); err != nil {
			return err
		}
		return s.start(near.Host, &s.proxies, "forward", far.IPv4.String())
	case p.Client == "":
		return nil
	}
	s.lab.Control.SetAddresses(client.Address(true), server.Address(true))
	s.lab.Control.SetAddresses(crowd(p.Workloads)...)
	binaries := map[*lab.Node]string{near: p.Client, far: p.Server}
	if p.SameNode {
		binaries = map[*lab.Node]string{near: p.Client}
	}
	for node, binary := range binaries {
		// Both binaries get the same two worker threads: what the peer's own chart gives it on such a machine. GODEBUG is what
		// our chart gives ours.
		proxy, err := node.StartProxy(binary, "ZTUNNEL_WORKER_THREADS=2", "RUST_LOG=error", "GODEBUG=schedtrace=2147483647")
		if err != nil {
			return err
		}
		s.proxies = append(s.proxies, proxy.PID())
		if err := proxy.WaitReady(ctx); err != nil {
			return err
		}
	}
	for _, pod := range []*lab.Pod{client, server} {
		if err := pod.Capture(ctx); err != nil {
			return err
		}
	}
	return nil
}

// crowd describes n workloads that nothing is sent to.
func crowd(n int) []*workload.Address {
	out := make([]*workload.Address, n)
	for i := range out {
		name, ns := "crowd-"+strconv.Itoa(i), "ns-"+strconv.Itoa(i%100)
		out[i] = &workload.Address{Type: &workload.Address_Workload{Workload: &workload.Workload{
			Uid: "Kubernetes//Pod/" + ns + "/" + name, Name: name, Namespace: ns, ServiceAccount: "sa-" + strconv.Itoa(i%1000),
			Addresses: [][]byte{{10, 80 + byte(i>>16), byte(i >> 8), byte(i)}}, Node: "node-" + strconv.Itoa(i%100),
			TunnelProtocol: workload.TunnelProtocol_HBONE, CanonicalName: "app-" + strconv.Itoa(i/10), CanonicalRevision: "latest",
			WorkloadName: "app-" + strconv.Itoa(i/10), ClusterId: "Kubernetes",
			Services: map[string]*workload.PortList{
				ns + "/app-" + strconv.Itoa(i/10) + "." + ns + ".svc.cluster.local": {Ports: []*workload.Port{{ServicePort: 80, TargetPort: 8080}}},
			},
		}}}
	}
	return out
}

func (s *site) close() error { return s.lab.Close() }

// start runs this program in the host's namespace until the site closes, and waits until it serves.
func (s *site) start(h *lab.Host, pids *[]int, args ...string) error {
	cmd := exec.Command(s.self, args...)
	cmd.Stderr = os.Stderr
	if err := h.Start(cmd); err != nil {
		return fmt.Errorf("start %v on %s: %w", args, h.Name, err)
	}
	s.lab.OnClose(func() error {
		_ = cmd.Process.Kill() // it may have ended by itself
		_ = cmd.Wait()         // killed
		return nil
	})
	if pids != nil {
		*pids = append(*pids, cmd.Process.Pid)
	}
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := h.Dial(fmt.Sprintf("127.0.0.1:%d", portEcho))
		if err == nil {
			return conn.Close()
		}
		select {
		case <-tick.C:
		case <-deadline:
			return fmt.Errorf("start %v on %s: %w", args, h.Name, err)
		}
	}
}

// Sample is what a load did on a path.
type Sample struct {
	Result
	// CPU is what all proxies used meanwhile.
	CPU time.Duration
	// Memory is the largest resident size of a proxy, while connections are held.
	Memory uint64
}

// drive runs the load in the client pod.
func (s *site) drive(ctx context.Context, l Load) (Sample, error) {
	spec, err := json.Marshal(l)
	if err != nil {
		return Sample{}, err
	}
	before, err := process.CPU(s.proxies)
	if err != nil {
		return Sample{}, err
	}
	cmd := exec.Command(s.self, "load", string(spec), s.target)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return Sample{}, err
	}
	if err := s.client.Start(cmd); err != nil {
		return Sample{}, err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	var sample Sample
	lines := bufio.NewReader(out)
	line, err := lines.ReadBytes('\n')
	if err == nil && string(line) == "held\n" {
		if sample.Memory, err = process.Memory(s.proxies); err == nil {
			line, err = lines.ReadBytes('\n')
		}
	}
	_, drain := io.Copy(io.Discard, lines)
	if err := errors.Join(err, drain, cmd.Wait()); err != nil {
		return Sample{}, fmt.Errorf("load %s: %w", l.Name, err)
	}
	if err := json.Unmarshal(line, &sample.Result); err != nil {
		return Sample{}, fmt.Errorf("load %s: %w", l.Name, err)
	}
	after, err := process.CPU(s.proxies)
	sample.CPU = after - before
	return sample, err
}
