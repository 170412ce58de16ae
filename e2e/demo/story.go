package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/deploy/samples"
	"github.com/ambit-mesh/ambit/deploy/samples/teahouse"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

const (
	// namespace is the sample application's, street the one of a client that is not in the mesh.
	namespace = "teahouse"
	street    = "street"
	// ready bounds every wait for pods, and for the mesh to know of a change.
	ready = 3 * time.Minute
	// rounds is how often the front is asked for each claim.
	rounds = 5
)

const passerBy = `
apiVersion: v1
kind: Namespace
metadata: {name: street}
---
apiVersion: v1
kind: Pod
metadata: {name: passer-by, namespace: street}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: docker.io/ambit/samples:dev
    imagePullPolicy: IfNotPresent
    command: [/usr/local/bin/traffic, serve]
`

const strict = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: teahouse}
spec:
  mtls: {mode: STRICT}
`

// story are the steps that show what the mesh does.
func (s *Show) story() []step {
	return slices.Concat([]step{
		{"start the sample application, outside the mesh", s.start},
		{"traffic before the label", s.plainOnTheWire},
		{"label the namespace", s.enrol},
		{"traffic after the label", s.tunnelsOnTheWire},
		{"identities that the server's proxy saw", s.identities},
		{"STRICT: a client outside the mesh", s.refused},
	}, s.requests(), []step{{"un-enrol", s.unenrol}})
}

// guest is the pod that asks.
func guest() harness.Pod { return harness.Pod{Namespace: namespace, Name: "guest"} }

// start applies the sample, and makes sure that it is not in the mesh from an earlier run.
func (s *Show) start(ctx context.Context) (string, error) {
	for _, manifest := range [][]byte{samples.Teahouse, []byte(passerBy)} {
		if err := s.cluster.Apply(ctx, manifest); err != nil {
			return "", err
		}
	}
	if err := s.dropWaypoint(ctx); err != nil { // of an earlier run that did not come to its end
		return "", err
	}
	if err := s.leave(ctx); err != nil {
		return "", err
	}
	for _, ns := range []string{namespace, street} {
		if err := s.cluster.AwaitReady(ctx, ns, ready); err != nil {
			return "", err
		}
	}
	until := harness.Until{What: "the front serves tables", Within: ready, InARow: 3}
	if err := harness.Await(ctx, until, func(ctx context.Context) error { _, err := s.ask(ctx, guest()); return err }); err != nil {
		return "", err
	}
	front, err := s.podOf(ctx, "front")
	if err != nil {
		return "", err
	}
	menu, err := s.podOf(ctx, "menu")
	if err != nil {
		return "", err
	}
	if front.Spec.NodeName == menu.Spec.NodeName {
		return "", fmt.Errorf("front and menu are both on %s: nothing would be on the wire between nodes", menu.Spec.NodeName)
	}
	return fmt.Sprintf("front on %s asks menu on %s over HTTP, and door, where the server speaks first", front.Spec.NodeName, menu.Spec.NodeName), nil
}

// leave takes the sample out of the mesh, if it is in it.
func (s *Show) leave(ctx context.Context) error {
	if err := s.cluster.Delete(ctx, []byte(strict)); err != nil {
		return err
	}
	if err := s.cluster.Unenrol(ctx, namespace); err != nil {
		return err
	}
	return s.cluster.AwaitReleased(ctx, namespace, ready)
}

func (s *Show) podOf(ctx context.Context, app string) (*corev1.Pod, error) {
	pods, err := s.cluster.Pods(ctx, namespace, "app="+app)
	if err != nil {
		return nil, err
	}
	if len(pods) != 1 {
		return nil, fmt.Errorf("%d pods of %s, want 1", len(pods), app)
	}
	return &pods[0], nil
}

// ask asks the front once, from a pod.
func (s *Show) ask(ctx context.Context, from harness.Pod) (teahouse.Table, error) {
	var table teahouse.Table
	var stdout, stderr bytes.Buffer
	url := "http://front." + namespace + ":8080/"
	err := s.cluster.Exec(ctx, from, harness.Streams{Stdout: &stdout, Stderr: &stderr}, "/usr/local/bin/traffic", "get", url)
	if err != nil {
		return table, fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	if err := json.Unmarshal(stdout.Bytes(), &table); err != nil {
		return table, fmt.Errorf("the front's answer %q: %w", stdout.String(), err)
	}
	if table.Menu == nil || table.Menu.Secret != teahouse.Secret || table.Door == "" {
		return table, fmt.Errorf("the front's answer lacks something: %s", stdout.String())
	}
	return table, nil
}

// listen captures both nodes' links while the guest asks the front, and returns what passed between the sample's pods.
func (s *Show) listen(ctx context.Context) ([]harness.Flow, error) {
	nodes, err := s.cluster.Nodes()
	if err != nil {
		return nil, err
	}
	var captures []*harness.Capture
	stop := func() error {
		var failed error
		for _, capture := range captures {
			failed = errors.Join(failed, capture.Stop())
		}
		return failed
	}
	for _, node := range nodes {
		capture, err := s.cluster.Capture(node.Name, teahouse.Secret, "a table for two")
		if err != nil {
			return nil, errors.Join(err, stop())
		}
		captures = append(captures, capture)
	}
	for range rounds {
		if _, err := s.ask(ctx, guest()); err != nil {
			return nil, errors.Join(err, stop())
		}
	}
	among, err := s.cluster.Addresses(ctx, namespace)
	if err != nil {
		return nil, errors.Join(err, stop())
	}
	var flows []harness.Flow
	for _, capture := range captures {
		flows = append(flows, capture.Flows(among...)...)
	}
	return flows, stop()
}

func (s *Show) plainOnTheWire(ctx context.Context) (string, error) {
	flows, err := s.listen(ctx)
	if err != nil {
		return "", err
	}
	clear := harness.InClear(flows)
	if len(clear) == 0 {
		return "", fmt.Errorf("no payload in clear in %d flows between the nodes", len(flows))
	}
	fmt.Fprint(s.Out, indent(harness.Describe(clear, 2)))
	return fmt.Sprintf("the menu's secret was readable on the wire, in %d flows", len(clear)), nil
}

func (s *Show) enrol(ctx context.Context) (string, error) {
	before, err := s.cluster.Pods(ctx, namespace, "")
	if err != nil {
		return "", err
	}
	if err := s.cluster.Enrol(ctx, namespace); err != nil {
		return "", err
	}
	if err := s.cluster.AwaitCaptured(ctx, namespace, ready); err != nil {
		return "", err
	}
	after, err := s.cluster.Pods(ctx, namespace, "")
	if err != nil {
		return "", err
	}
	for i := range after {
		same := false
		for j := range before {
			same = same || before[j].UID == after[i].UID
		}
		if restarts := after[i].Status.ContainerStatuses[0].RestartCount; !same || restarts > 0 {
			return "", fmt.Errorf("pod %s is another one than before, or was restarted (%d)", after[i].Name, restarts)
		}
	}
	return fmt.Sprintf("%s=%s: %d pods captured, none restarted", api.LabelDataplaneMode, api.DataplaneModeAmbient, len(after)), nil
}

func (s *Show) tunnelsOnTheWire(ctx context.Context) (string, error) {
	flows, err := s.listen(ctx)
	if err != nil {
		return "", err
	}
	if bare := harness.NotTunnelled(flows); len(bare) > 0 {
		return "", fmt.Errorf("%d flows between the nodes are not tunnels:\n%s", len(bare), harness.Describe(bare, 5))
	}
	var packets int
	var payload int64
	for _, flow := range flows {
		packets += flow.Packets
		payload += flow.Bytes
	}
	if payload == 0 {
		return "", errors.New("nothing passed between the nodes")
	}
	table, err := s.ask(ctx, guest())
	if err != nil {
		return "", err
	}
	front, err := s.podOf(ctx, "front")
	if err != nil {
		return "", err
	}
	seen, err := netip.ParseAddrPort(table.Menu.By.Client)
	if err != nil || seen.Addr().String() != front.Status.PodIP {
		return "", fmt.Errorf("the menu saw %q as its client, want the front's own address %s", table.Menu.By.Client, front.Status.PodIP)
	}
	return fmt.Sprintf("%d packets, all of them TLS to port %d, none with the payload; menu still sees the front as %s", packets, api.PortHBONE, front.Status.PodIP), nil
}

func (s *Show) identities(ctx context.Context) (string, error) {
	menu, err := s.podOf(ctx, "menu")
	if err != nil {
		return "", err
	}
	since := time.Now()
	if _, err := s.ask(ctx, guest()); err != nil {
		return "", err
	}
	source, destination := identity("front"), identity("menu")
	var line string
	until := harness.Until{What: "the connection in the access log of " + menu.Spec.NodeName, Within: time.Minute}
	err = harness.Await(ctx, until, func(ctx context.Context) error {
		lines, err := s.cluster.AccessLog(ctx, menu.Spec.NodeName, since)
		if err != nil {
			return err
		}
		for _, access := range lines {
			if access.Direction == "inbound" && access.SourceIdentity == source && access.DestIdentity == destination {
				line = access.Line
				return nil
			}
		}
		return fmt.Errorf("none from %s to %s in %d lines", source, destination, len(lines))
	})
	if err != nil {
		return "", err
	}
	fmt.Fprint(s.Out, indent(line+"\n"))
	return source + " to " + destination, nil
}

func identity(account string) string {
	return fmt.Sprintf("spiffe://%s/ns/%s/sa/%s", api.DefaultTrustDomain, namespace, account)
}

func (s *Show) refused(ctx context.Context) (string, error) {
	outside := harness.Pod{Namespace: street, Name: "passer-by"}
	if _, err := s.ask(ctx, outside); err != nil {
		return "", fmt.Errorf("without the policy a client outside is let in, but: %w", err)
	}
	if err := s.cluster.Apply(ctx, []byte(strict)); err != nil {
		return "", err
	}
	var told error
	until := harness.Until{What: "a client outside is refused", Within: time.Minute, InARow: 3}
	err := harness.Await(ctx, until, func(ctx context.Context) error {
		if _, told = s.ask(ctx, outside); told == nil {
			return errors.New("it was served")
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	if _, err := s.ask(ctx, guest()); err != nil {
		return "", fmt.Errorf("a client inside is refused too: %w", err)
	}
	return fmt.Sprintf("it was served before; now: %s; a client inside is served", lastPart(told)), nil
}

// lastPart is the end of an error, which is its cause.
func lastPart(err error) string {
	text := firstLine(err.Error())
	if i := strings.LastIndex(text, "dial tcp"); i >= 0 {
		return text[i:]
	}
	if i := strings.LastIndex(text, ": "); i >= 0 {
		return text[i+2:]
	}
	return text
}

func (s *Show) unenrol(ctx context.Context) (string, error) {
	if err := s.leave(ctx); err != nil {
		return "", err
	}
	flows, err := s.listen(ctx)
	if err != nil {
		return "", err
	}
	if len(harness.InClear(flows)) == 0 {
		return "", fmt.Errorf("no payload in clear in %d flows", len(flows))
	}
	return "the label is gone: plain on the wire again, and no pod was restarted", s.notRestarted(ctx)
}

func (s *Show) notRestarted(ctx context.Context) error {
	pods, err := s.cluster.Pods(ctx, namespace, "")
	if err != nil {
		return err
	}
	for i := range pods {
		if !harness.PodReady(&pods[i]) || pods[i].Status.ContainerStatuses[0].RestartCount > 0 {
			return fmt.Errorf("pod %s: %s", pods[i].Name, harness.PodState(&pods[i]))
		}
	}
	return nil
}

func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("        | " + line)
	}
	return b.String()
}
