package requests

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/e2e/lab"
	"github.com/ambit-mesh/ambit/mesh/xds"
)

// buildWay makes pods and proxies. The caller closes its lab.
func buildWay(ctx context.Context, c Config, dir string, programs Programs) (_ *way, err error) {
	ctx, cancel := context.WithTimeout(ctx, setUp)
	defer cancel()
	l, err := lab.New(ctx, lab.Config{Dir: dir, Family: lab.IPv4})
	if err != nil {
		return nil, err
	}
	w := &way{lab: l, addrs: map[string]string{}, waypoints: map[string]int{}}
	if err := w.fill(ctx, c, dir, programs); err != nil {
		return nil, errors.Join(fmt.Errorf("build the way: %w", err), l.Close())
	}
	return w, nil
}

// backendPort is the backend's in its pod, servicePort that of the services before it. Each has a waypoint of its own.
const (
	backendPort = 8080
	servicePort = 80
)

var services = []struct{ waypoint, vip string }{{Waypoint, "10.96.0.1"}, {Reverse, "10.96.0.2"}, {Envoy, "10.96.0.3"}}

// backendAt is the backend's address on a host.
func backendAt(h *lab.Host) string { return netip.AddrPortFrom(h.IPv4, backendPort).String() }

func (w *way) fill(ctx context.Context, c Config, dir string, programs Programs) error {
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
	for _, h := range []*lab.Host{bareServer, server.Host} {
		if err := w.run(ctx, exec.Command(c.Self, asBackend, ":"+strconv.Itoa(backendPort)), h, backendPort); err != nil {
			return err
		}
	}
	w.addrs[bareWay], w.addrs[tunnelWay] = backendAt(bareServer), backendAt(server.Host)
	for i, s := range services {
		if s.waypoint == Envoy && c.Envoy == "" {
			continue
		}
		pod, err := far.AddPod("waypoint" + strconv.Itoa(i))
		if err != nil {
			return err
		}
		if err := w.startWaypoint(ctx, s.waypoint, s.vip, pod, server, c, dir, programs.Waypoint); err != nil {
			return fmt.Errorf("%s: %w", s.waypoint, err)
		}
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
	for name := range w.waypoints {
		if err := awaitAnswer(ctx, w.client.Host, w.addrs[name]); err != nil {
			return fmt.Errorf("no answer by %s: %w", name, err)
		}
	}
	return nil
}

// startWaypoint tells the mesh of a service that has the waypoint, and starts that.
func (w *way) startWaypoint(ctx context.Context, name, vip string, pod, server *lab.Pod, c Config, dir, ours string) error {
	w.lab.Control.SetAddresses(pod.Address(true), w.client.Address(true), server.Address(true), &workload.Address{Type: &workload.Address_Service{
		Service: &workload.Service{
			Name: pod.Name, Namespace: "default", Hostname: pod.Name + ".default.svc.cluster.local",
			Addresses: []*workload.NetworkAddress{{Address: netip.MustParseAddr(vip).AsSlice()}},
			Ports:     []*workload.Port{{ServicePort: servicePort, TargetPort: backendPort}},
			Waypoint: &workload.GatewayAddress{HboneMtlsPort: api.PortHBONE, Destination: &workload.GatewayAddress_Address{
				Address: &workload.NetworkAddress{Address: pod.IPv4.AsSlice()}}},
		},
	}})
	w.addrs[name] = net.JoinHostPort(vip, strconv.Itoa(servicePort))
	if name == Waypoint {
		return w.startOurs(ctx, ours, pod, server)
	}
	m, err := newMeshed(w.lab.Control, pod, server)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, pod.Name)
	cmd := exec.Command(c.Self, asMeshed, fmt.Sprintf(":%d", api.PortHBONE), file)
	text, err := json.Marshal(m)
	if name == Envoy {
		file += ".yaml"
		cmd = exec.Command(c.Envoy, "-c", file, "--concurrency", strconv.Itoa(runtime.NumCPU()), "--disable-hot-restart", "-l", "error")
		text = fmt.Appendf(nil, meshedYAML, m.Certificate, m.Key, m.Roots, m.Backend, server.IPv4, m.Expect)
	}
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return err
	}
	if err := w.run(ctx, cmd, pod.Host, api.PortHBONE); err != nil {
		return err
	}
	w.waypoints[name] = cmd.Process.Pid
	return nil
}

// Configure tells waypoints of a service at 10.96.0.1:80, whose backend is in the mesh: its address and port, and its identity.
func Configure(control *lab.Control, backend, identity string) error {
	for _, r := range []struct{ typeURL, name, text string }{
		{xds.TypeCluster, "stock", clusterYAML + tunnelYAML},
		{xds.TypeEndpoints, "stock", fmt.Sprintf(tunnelEndpointYAML, backend, identity)},
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
		control.Set(r.typeURL, r.name, m)
	}
	return nil
}

// startOurs starts our waypoint, which the control plane tells everything.
func (w *way) startOurs(ctx context.Context, binary string, pod, server *lab.Pod) error {
	control := w.lab.Control
	if err := Configure(control, backendAt(server.Host), server.Identity()); err != nil {
		return err
	}
	start := time.Now()
	p, err := pod.StartWaypoint(binary)
	if err != nil {
		return err
	}
	if err := p.WaitReady(ctx); err != nil {
		return err
	}
	w.ready, w.waypoints[Waypoint] = time.Since(start), p.PID()
	for _, nack := range control.Nacks() {
		return fmt.Errorf("it refuses its configuration: %s", nack)
	}
	return nil
}

// run runs a server on a host until the lab closes, and waits until it serves the port.
func (w *way) run(ctx context.Context, cmd *exec.Cmd, h *lab.Host, port int) error {
	cmd.Stderr = os.Stderr
	if err := h.Start(cmd); err != nil {
		return fmt.Errorf("start on %s: %w", h.Name, err)
	}
	w.lab.OnClose(func() error {
		_ = cmd.Process.Kill() // it may have ended by itself
		_ = cmd.Wait()         // killed
		return nil
	})
	return awaitOn(ctx, func() error {
		nc, err := h.Dial(net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
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
