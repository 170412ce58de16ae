package requests

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/e2e/bench/process"
	"github.com/ambit-mesh/ambit/e2e/lab"
	"github.com/ambit-mesh/ambit/mesh/xds"
)

// Ways from one pod to another.
const (
	bareWay     = "bare"
	tunnelWay   = "two ztunnels"
	waypointWay = "with waypoint"
)

// Programs are the binaries of the whole way.
type Programs struct{ Ztunnel, Waypoint string }

// WayReport is the outcome of RunWay.
type WayReport struct {
	Ways  []string
	Loads []Load
	// Sums are by load and way; CPU is of the ztunnels and the waypoint together.
	Sums map[string]map[string]*Sum
	// CPU is what the waypoint alone used, by load.
	CPU map[string]time.Duration
	// Ready is how long the waypoint's process took until it was ready.
	Ready time.Duration
	// Memory is the waypoint's.
	Memory Memory
	config Config
}

// way is the pods and proxies of a run.
type way struct {
	lab      *lab.Lab
	bare     *lab.Host // a client outside the mesh
	client   *lab.Pod
	addrs    map[string]string // by way
	ztunnels []int
	waypoint int
	ready    time.Duration
}

// setUp is how long the pods and proxies may take.
const setUp = 60 * time.Second

// RunWay measures the whole way from a pod by its ztunnel, the waypoint and another ztunnel to a pod on another node, beside the way
// without the waypoint and that without any proxy. All share all processors. It needs root.
func RunWay(ctx context.Context, c Config, programs Programs, progress io.Writer) (_ *WayReport, err error) {
	dir, err := os.MkdirTemp("", "ambit-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	w, err := buildWay(ctx, c.Self, dir, programs)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.lab.Close()) }()
	r := &WayReport{
		Ways: []string{bareWay, tunnelWay, waypointWay}, Loads: c.loads(), Sums: map[string]map[string]*Sum{},
		CPU: map[string]time.Duration{}, Ready: w.ready, config: c,
	}
	if r.Memory.Idle, err = process.Memory([]int{w.waypoint}); err != nil {
		return nil, err
	}
	for _, l := range r.Loads {
		if err := r.load(ctx, w, l, progress); err != nil {
			return nil, err
		}
	}
	many := Load{Version: HTTP1, Connections: c.Connections, Streams: 1, Duration: c.Duration, Addr: w.addrs[waypointWay]}
	var s Sum
	if err := drive(ctx, c.Self, many, w.client.Start, []int{w.waypoint}, &s, &r.Memory.Many); err != nil {
		return nil, fmt.Errorf("load %s: %w", many.Name(), err)
	}
	fmt.Fprintf(progress, "the waypoint is ready after %v; memory: idle %s, %d connections %s (%s)\n",
		r.Ready.Round(time.Millisecond), mib(r.Memory.Idle), c.Connections, mib(r.Memory.Many), &s)
	return r, nil
}

// load runs all rounds of a load.
func (r *WayReport) load(ctx context.Context, w *way, l Load, progress io.Writer) error {
	sums := map[string]*Sum{}
	r.Sums[l.Name()] = sums
	for round := range r.config.Rounds + 1 {
		for _, name := range r.Ways {
			one, host, pids := l, w.client.Host, []int(nil)
			one.Addr = w.addrs[name]
			switch name {
			case bareWay:
				host = w.bare
			case tunnelWay:
				pids = w.ztunnels
			default:
				pids = append([]int{w.waypoint}, w.ztunnels...)
			}
			if round == 0 {
				one.Duration = warmUp
				sums[name] = &Sum{}
			}
			s := sums[name]
			if round == 0 {
				s = &Sum{}
			}
			before, err := process.CPU([]int{w.waypoint})
			if err != nil {
				return err
			}
			if err := drive(ctx, r.config.Self, one, host.Start, pids, s, nil); err != nil {
				return fmt.Errorf("load %s on the way %q: %w", l.Name(), name, err)
			}
			after, err := process.CPU([]int{w.waypoint})
			if err != nil {
				return err
			}
			if name == waypointWay && round > 0 {
				r.CPU[l.Name()] += after - before
			}
		}
	}
	for _, name := range r.Ways {
		fmt.Fprintf(progress, "%s: %s: %s\n", l.Name(), name, sums[name])
	}
	return nil
}

func buildWay(ctx context.Context, self, dir string, programs Programs) (_ *way, err error) {
	ctx, cancel := context.WithTimeout(ctx, setUp)
	defer cancel()
	l, err := lab.New(ctx, lab.Config{Dir: dir, Family: lab.IPv4})
	if err != nil {
		return nil, err
	}
	w := &way{lab: l, addrs: map[string]string{}}
	if err := w.fill(ctx, self, programs); err != nil {
		return nil, errors.Join(fmt.Errorf("build the way: %w", err), l.Close())
	}
	return w, nil
}

// port is the backend's in its pod, and the service's.
const (
	backendPort = 8080
	servicePort = 80
	serviceVIP  = "10.96.0.1"
)

func (w *way) fill(ctx context.Context, self string, programs Programs) error {
	near, err := w.lab.AddNode("near")
	if err != nil {
		return err
	}
	far, err := w.lab.AddNode("far")
	if err != nil {
		return err
	}
	if w.bare, err = w.lab.AddHost("bare-client"); err != nil {
		return err
	}
	bareServer, err := w.lab.AddHost("bare-server")
	if err != nil {
		return err
	}
	if w.client, err = near.AddPod("client"); err != nil {
		return err
	}
	server, err := far.AddPod("server")
	if err != nil {
		return err
	}
	waypoint, err := far.AddPod("waypoint")
	if err != nil {
		return err
	}
	for _, h := range []*lab.Host{bareServer, server.Host} {
		if err := w.startBackend(ctx, self, h); err != nil {
			return err
		}
	}
	at := func(h *lab.Host) string { return h.IPv4.String() + ":" + strconv.Itoa(backendPort) }
	w.addrs = map[string]string{bareWay: at(bareServer), tunnelWay: at(server.Host), waypointWay: serviceVIP + ":" + strconv.Itoa(servicePort)}
	if err := w.startWaypoint(ctx, programs.Waypoint, waypoint, server); err != nil {
		return err
	}
	for _, node := range []*lab.Node{near, far} {
		p, err := node.StartProxy(programs.Ztunnel, "GODEBUG=schedtrace=2147483647") // as our chart does
		if err != nil {
			return err
		}
		w.ztunnels = append(w.ztunnels, p.PID())
		if err := p.WaitReady(ctx); err != nil {
			return err
		}
	}
	for _, pod := range []*lab.Pod{w.client, server} {
		if err := pod.Capture(ctx); err != nil {
			return err
		}
	}
	return awaitAnswer(ctx, w.client.Host, w.addrs[waypointWay])
}

// startWaypoint tells the mesh of a service that has the waypoint, and starts that.
func (w *way) startWaypoint(ctx context.Context, binary string, pod, server *lab.Pod) error {
	control := w.lab.Control
	vip := []byte{10, 96, 0, 1}
	control.SetAddresses(pod.Address(true), w.client.Address(true), server.Address(true), &workload.Address{Type: &workload.Address_Service{Service: &workload.Service{
		Name: "stock", Namespace: "default", Hostname: "stock.default.svc.cluster.local",
		Addresses: []*workload.NetworkAddress{{Address: vip}},
		Ports:     []*workload.Port{{ServicePort: servicePort, TargetPort: backendPort}},
		Waypoint: &workload.GatewayAddress{HboneMtlsPort: 15008, Destination: &workload.GatewayAddress_Address{
			Address: &workload.NetworkAddress{Address: pod.IPv4.AsSlice()}}},
	}}})
	for _, r := range []struct{ typeURL, name, text string }{
		{xds.TypeCluster, "stock", clusterYAML + tunnelYAML},
		{xds.TypeEndpoints, "stock", fmt.Sprintf(tunnelEndpointYAML, server.IPv4.String()+":"+strconv.Itoa(backendPort), server.Identity())},
		{xds.TypeListener, "connect_terminate", terminateYAML},
		{xds.TypeListener, "main_internal", listenerYAML},
		{xds.TypeRoutes, "web", routesYAML},
	} {
		resource, err := resourceOf(r.typeURL, r.name, r.text)
		if err != nil {
			return err
		}
		m, err := resource.GetResource().UnmarshalNew()
		if err != nil {
			return fmt.Errorf("%s %s: %w", r.typeURL, r.name, err)
		}
		control.Set(r.typeURL, r.name, proto.Clone(m))
	}
	start := time.Now()
	p, err := pod.StartWaypoint(binary)
	if err != nil {
		return err
	}
	if err := p.WaitReady(ctx); err != nil {
		return err
	}
	w.ready, w.waypoint = time.Since(start), p.PID()
	for _, nack := range control.Nacks() {
		return fmt.Errorf("the waypoint refuses its configuration: %s", nack)
	}
	return nil
}

func (w *way) startBackend(ctx context.Context, self string, h *lab.Host) error {
	cmd := exec.Command(self, asBackend, ":"+strconv.Itoa(backendPort))
	cmd.Stderr = os.Stderr
	if err := h.Start(cmd); err != nil {
		return fmt.Errorf("start backend on %s: %w", h.Name, err)
	}
	w.lab.OnClose(func() error {
		_ = cmd.Process.Kill() // it may have ended by itself
		_ = cmd.Wait()         // killed
		return nil
	})
	return awaitOn(ctx, func() error {
		nc, err := h.Dial("127.0.0.1:" + strconv.Itoa(backendPort))
		if err != nil {
			return err
		}
		return nc.Close()
	})
}

// awaitAnswer waits until a request is answered.
func awaitAnswer(ctx context.Context, from *lab.Host, addr string) error {
	return awaitOn(ctx, func() error {
		nc, err := from.Dial(addr)
		if err != nil {
			return err
		}
		defer nc.Close()
		if err := nc.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		return askOnce(nc)
	})
}

// Failed returns how many requests failed.
func (r *WayReport) Failed() (n uint64) {
	for _, sums := range r.Sums {
		for _, s := range sums {
			n += s.Failed
		}
	}
	return n
}

// Write prints the table.
func (r *WayReport) Write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "the whole way\tfigure")
	for _, name := range r.Ways {
		fmt.Fprintf(t, "\t%s", name)
	}
	fmt.Fprintln(t)
	for _, l := range r.Loads {
		sums := r.Sums[l.Name()]
		row := func(load, figure, format string, of func(*Sum) float64) {
			fmt.Fprintf(t, "%s\t%s", load, figure)
			for _, name := range r.Ways {
				fmt.Fprintf(t, "\t"+format, of(sums[name]))
			}
			fmt.Fprintln(t)
		}
		row(l.Name(), "CPU of all proxies for a request, us", "%.1f", func(s *Sum) float64 { return micro(s.PerRequest()) })
		own := r.CPU[l.Name()] / time.Duration(max(sums[waypointWay].Requests, 1))
		fmt.Fprintf(t, "\tof it the waypoint's\t\t\t%.1f\n", micro(own))
		row("", "requests a second", "%.0f", (*Sum).Rate)
		row("", "p50, us", "%.0f", func(s *Sum) float64 { return micro(median(s.P50)) })
		row("", "p99, us", "%.0f", func(s *Sum) float64 { return micro(median(s.P99)) })
	}
	const size = 1 << 20
	fmt.Fprintf(t, "the waypoint\tms until it is ready\t\t\t%d\n", r.Ready.Milliseconds())
	fmt.Fprintf(t, "\tmemory idle, MiB\t\t\t%.1f\n", float64(r.Memory.Idle)/size)
	fmt.Fprintf(t, "\tmemory, %d busy connections, MiB\t\t\t%.1f\n", r.config.Connections, float64(r.Memory.Many)/size)
	return t.Flush()
}
