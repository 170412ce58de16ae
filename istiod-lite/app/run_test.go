package app

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	clienttesting "k8s.io/client-go/testing"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod-lite/resource"
	"github.com/ambit-mesh/ambit/istiod-lite/xds/xdstest"
)

func namespaceObject(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

// From objects at the API server to a node proxy's stream, and back out again.
func TestPodReachesNodeProxy(t *testing.T) {
	a := newAPI(t, namespaceObject("shop"))
	a.createPod(a.ztunnel("node1"))
	a.createPod(pod("shop", "web", "web", "node1", "10.0.0.1"))
	if _, err := a.core.CoreV1().Services("shop").Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", Selector: map[string]string{"app": "web"},
			Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	r := a.start()
	r.awaitReady()
	c := r.subscribe("node1")
	known := c.Resources[resource.Address]
	for _, name := range []string{uid("shop", "web"), uid("istio-system", "ztunnel-node1"), "shop/web.shop.svc.cluster.local"} {
		if known[name] == "" {
			t.Errorf("%s is not in the first push: %v", name, known)
		}
	}
	a.awaitWatch(1, "pods")

	fresh := pod("shop", "fresh", "web", "node2", "10.0.0.2")
	a.createPod(fresh)
	c.Until("the new pod is there", func() bool { return known[uid("shop", "fresh")] != "" })
	before := known[uid("shop", "fresh")]
	fresh.Status.Conditions[0].Status = corev1.ConditionFalse
	a.updatePod(fresh)
	c.Until("the pod is unhealthy", func() bool { return known[uid("shop", "fresh")] != before })
	a.deletePod(fresh)
	c.Until("the pod is gone", func() bool { return known[uid("shop", "fresh")] == "" })

	if _, text := r.get(r.debug, "/debug/adsz"); !strings.Contains(text, "ztunnel-node1") || !strings.Contains(text, uid("shop", "fresh")) {
		t.Errorf("/debug/adsz does not show the proxy and its last pushes:\n%s", text)
	}
	if _, text := r.get(r.debug, "/debug/configz?name=shop/web&type=address"); !strings.Contains(text, `"targetPort": 8080`) {
		t.Errorf("/debug/configz does not show the pod:\n%s", text)
	}
	if _, text := r.get(r.monitoring, "/metrics"); !strings.Contains(text, "pilot_xds 1") || !strings.Contains(text, `ambit_state_objects{kind="Pod"} 2`) {
		t.Errorf("/metrics does not count the client and the pods:\n%s", text)
	} else {
		documented(t, text)
	}
	if code, text := r.get(r.monitoring, "/healthz"); code != http.StatusOK {
		t.Errorf("/healthz says %d %s", code, text)
	}
}

// A pod that is to end is unhealthy at once, ready as it is, and stays known until it is gone.
func TestTerminatingPodIsWithdrawn(t *testing.T) {
	a := newAPI(t, namespaceObject("shop"))
	a.createPod(a.ztunnel("node1"))
	web := pod("shop", "web", "web", "node2", "10.0.0.1")
	a.createPod(web)
	r := a.start()
	r.awaitReady()
	c := r.subscribe("node1")
	a.awaitWatch(1, "pods")
	now := metav1.Now()
	web.DeletionTimestamp, web.DeletionGracePeriodSeconds = &now, new(int64)
	start := time.Now()
	a.updatePod(web)
	push := c.NextAck()
	t.Logf("pushed after %v", time.Since(start))
	var addr workload.Address
	if len(push.GetResources()) != 1 || push.GetResources()[0].GetResource().UnmarshalTo(&addr) != nil {
		t.Fatalf("pushed %v", push)
	}
	if w := addr.GetWorkload(); w.GetUid() != uid("shop", "web") || w.GetStatus() != workload.WorkloadStatus_UNHEALTHY {
		t.Errorf("pushed %v, want the pod as unhealthy", w)
	}
	a.deletePod(web)
	c.Until("the pod is gone", func() bool { return c.Resources[resource.Address][uid("shop", "web")] == "" })
}

// documented fails the test unless users are told of all metrics.
func documented(t *testing.T, metrics string) {
	t.Helper()
	page, err := os.ReadFile("../../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for line := range strings.Lines(metrics) {
		name, _, _ := strings.Cut(strings.TrimPrefix(line, "# TYPE "), " ")
		if !strings.HasPrefix(line, "# TYPE ") || strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") {
			continue
		}
		if found++; !strings.Contains(string(page), "`"+name) {
			t.Errorf("docs/observability.md does not mention %s", name)
		}
	}
	if found < 15 {
		t.Errorf("only %d metrics in\n%s", found, metrics)
	}
}

// The definition of PeerAuthentication may come after the control plane.
func TestPeerAuthenticationComesLater(t *testing.T) {
	a := newAPI(t, namespaceObject("shop"))
	a.noPeerAuthentications.Store(true)
	a.createPod(a.ztunnel("node1"))
	a.createPod(pod("shop", "web", "web", "node1", "10.0.0.1"))
	r := a.start()
	r.awaitReady()
	c := r.subscribe("node1")
	known := c.Resources
	before := known[resource.Address][uid("shop", "web")]
	if before == "" || len(known[resource.Authorization]) != 1 {
		t.Fatalf("the first push has %v, want the pod and the static policy", known)
	}
	if code, text := r.get(r.debug, "/debug/statusz"); code != http.StatusOK || !strings.Contains(text, "PeerAuthentication") {
		t.Errorf("/debug/statusz does not say that PeerAuthentication is not there:\n%s", text)
	}
	a.createPeerAuthentication("shop", "default", "STRICT")
	a.noPeerAuthentications.Store(false)
	c.Until("the pod is under the policy", func() bool { return known[resource.Address][uid("shop", "web")] != before })
	if code, text := r.get(r.debug, "/debug/configz?name=shop/web"); code != http.StatusOK || !strings.Contains(text, "istio-system/istio_converted_static_strict") {
		t.Errorf("the pod does not name the policy:\n%s", text)
	}
}

func TestSettingsAreReadLive(t *testing.T) {
	a := newAPI(t, namespaceObject("shop"))
	a.createPod(a.ztunnel("node1"))
	a.createPod(pod("shop", "web", "web", "node1", "10.0.0.1"))
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: api.DefaultNamespace, Name: api.MeshConfigMap}, Data: map[string]string{"mesh": "trustDomain: one.example"}}
	maps := a.core.CoreV1().ConfigMaps(api.DefaultNamespace)
	if _, err := maps.Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	r := a.start()
	r.awaitReady()
	a.awaitWatch(1, "configmaps")
	c := r.subscribe("node1")
	known := c.Resources[resource.Address]
	before := known[uid("shop", "web")]
	if _, _, err := r.certificate(r.dialTLS(), "ztunnel-node1", "spiffe://one.example/ns/shop/sa/web"); err != nil {
		t.Errorf("certificate in the first trust domain: %v", err)
	}

	cm.Data["mesh"] = "trustDomain: [broken"
	if _, err := maps.Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	cm.Data["mesh"] = "trustDomain: two.example\nrootNamespace: policies\n"
	if _, err := maps.Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.Until("the new trust domain is there", func() bool { return known[uid("shop", "web")] != before })
	c.Until("the static policy has moved", func() bool {
		return c.Resources[resource.Authorization]["policies/istio_converted_static_strict"] != "" && c.Resources[resource.Authorization]["istio-system/istio_converted_static_strict"] == ""
	})
	_, _, err := r.certificate(r.dialTLS(), "ztunnel-node1", "spiffe://one.example/ns/shop/sa/web")
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("certificate in the old trust domain: %v, want PermissionDenied", err)
	}
	if _, _, err := r.certificate(r.dialTLS(), "ztunnel-node1", "spiffe://two.example/ns/shop/sa/web"); err != nil {
		t.Errorf("certificate in the new trust domain: %v", err)
	}
}

// Settings that cannot be read at the start are not guessed.
func TestBrokenSettingsAreNotReady(t *testing.T) {
	a := newAPI(t)
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: api.DefaultNamespace, Name: api.MeshConfigMap}, Data: map[string]string{"mesh": "trustDomain: UPPER"}}
	maps := a.core.CoreV1().ConfigMaps(api.DefaultNamespace)
	if _, err := maps.Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	r := a.start()
	await(t, "the reason", func() bool { _, text := r.get(r.monitoring, "/ready"); return strings.Contains(text, "UPPER") })
	a.awaitWatch(1, "configmaps")
	cm.Data["mesh"] = "trustDomain: lower.example"
	if _, err := maps.Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.awaitReady()
}

// Two replicas serve the same resources under the same versions, from one root, so that a proxy can go from one to the other
// and is sent nothing twice.
func TestTwoReplicas(t *testing.T) {
	a := newAPI(t, namespaceObject("shop"), namespaceObject("default"))
	a.createPod(a.ztunnel("node1"))
	a.createPod(pod("shop", "web", "web", "node1", "10.0.0.1"))
	first, second := a.start(), a.start()
	first.awaitReady()
	second.awaitReady()
	c := first.subscribe("node1")
	known := c.Resources

	first.stop()
	if err := c.Err(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream to the replica that stopped ended with %v, want Unavailable", err)
	}
	c = xdstest.Open(withToken(t.Context(), "ztunnel-node1"), t, second.dialTLS(), proxyNode("node1"))
	c.Subscribe(resource.Authorization, known[resource.Authorization])
	c.Subscribe(resource.Address, known[resource.Address])
	for range 2 {
		if names := xdstest.Names(c.NextAck()); len(names) != 0 {
			t.Errorf("the other replica sends %v again", names)
		}
	}
	for _, ns := range []string{"shop", "default"} {
		await(t, "the trust bundle in "+ns, func() bool {
			cm, err := a.core.CoreV1().ConfigMaps(ns).Get(t.Context(), api.RootCertConfigMap, metav1.GetOptions{})
			return err == nil && strings.Contains(cm.Data[api.RootCertKey], "BEGIN CERTIFICATE")
		})
	}
}

func TestTrustBundleIsKept(t *testing.T) {
	a := newAPI(t, namespaceObject("shop"))
	const name = "beside-ca-root-cert" // not the default, so that another mesh can have that
	r := a.start(func(c *Config) { c.RootCertConfigMap = name })
	r.awaitReady()
	maps := a.core.CoreV1().ConfigMaps
	right := func(ns string) func() bool {
		return func() bool {
			cm, err := maps(ns).Get(t.Context(), name, metav1.GetOptions{})
			return err == nil && strings.Contains(cm.Data[api.RootCertKey], "BEGIN CERTIFICATE")
		}
	}
	await(t, "the bundle", right("shop"))
	a.awaitWatch(2, "namespaces", "configmaps")
	if _, err := a.core.CoreV1().Namespaces().Create(t.Context(), namespaceObject("later"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, "the bundle in a new namespace", right("later"))
	cm, err := maps("shop").Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	cm.Data = map[string]string{api.RootCertKey: "tampered", "other": "stays"}
	if _, err := maps("shop").Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, "the bundle repaired", right("shop"))
	if cm, _ = maps("shop").Get(t.Context(), name, metav1.GetOptions{}); cm.Data["other"] != "stays" {
		t.Errorf("a key that is not ours was lost: %v", cm.Data)
	}
	if err := maps("later").Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, "the bundle made anew", right("later"))
	if _, err := maps("shop").Get(t.Context(), api.RootCertConfigMap, metav1.GetOptions{}); err == nil {
		t.Error("the other mesh's config map was written")
	}
}

// The plain address serves xDS and nothing else.
func TestPlaintext(t *testing.T) {
	a := newAPI(t)
	r := a.start()
	r.awaitReady()
	c := xdstest.Open(t.Context(), t, r.dialPlain(), nil)
	c.Subscribe(resource.Authorization, nil)
	c.NextAck()
	if _, _, err := r.certificate(r.dialPlain(), "", spiffe("a", "b")); status.Code(err) != codes.Unimplemented {
		t.Errorf("a certificate in plaintext: %v, want Unimplemented", err)
	}
}

func TestServingCertificate(t *testing.T) {
	a := newAPI(t)
	r := a.start()
	for _, name := range []string{"istiod.istio-system.svc", "istiod.istio-system.svc.cluster.local", "istiod-lite.istio-system.svc", "istiod-lite.istio-system.svc.cluster.local"} {
		conn, err := tls.Dial("tcp", r.secure, &tls.Config{RootCAs: r.roots, ServerName: name, NextProtos: []string{"h2"}})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if v := conn.ConnectionState().Version; v != tls.VersionTLS13 {
			t.Errorf("%s: version %x", name, v)
		}
		conn.Close()
	}
}

func TestCommandLine(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"--plaintext-addr=0.0.0.0:15010"}, "not a loopback address"},
		{[]string{"--plaintext-addr=:15010"}, "not a loopback address"},
		{[]string{"--plaintext-addr=localhost:15010"}, "not a loopback address"},
		{[]string{"--debug-addr=10.0.0.1:9876"}, "not a loopback address"},
		{[]string{"--debug-addr=127.0.0.1"}, "missing port"},
		{[]string{"--trusted-node-accounts=ztunnel"}, "namespace/name"},
		{[]string{"--namespace=Upper"}, "--namespace"},
		{[]string{"--cluster-id=a/b"}, "--cluster-id"},
		{[]string{"--cluster-domain=-"}, "--cluster-domain"},
		{[]string{"--log-level=loud"}, "--log-level"},
		{[]string{"--log-format=xml"}, "--log-format"},
		{[]string{"--drain-delay=-1s"}, "--drain-delay"},
		{[]string{"--root-cert-configmap=A_B"}, "--root-cert-configmap"},
		{[]string{"--nonsense"}, "nonsense"},
		{[]string{"serve"}, `unexpected argument "serve"`},
		{[]string{"--kubeconfig=/does/not/exist"}, "/does/not/exist"},
	} {
		var out, errs bytes.Buffer
		err := Run(t.Context(), tc.args, &out, &errs)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v: error %v, want one that mentions %q", tc.args, err, tc.want)
		}
	}
	for _, arg := range []string{"version", "--version"} {
		var out, errs bytes.Buffer
		if err := Run(t.Context(), []string{arg}, &out, &errs); err != nil || !strings.HasPrefix(out.String(), "istiod-lite ") || errs.Len() > 0 {
			t.Errorf("%s: %q, %q, %v", arg, out.String(), errs.String(), err)
		}
	}
	var out, errs bytes.Buffer
	if err := Run(t.Context(), []string{"--help"}, &out, &errs); err != nil || !strings.Contains(errs.String(), "-plaintext-addr") {
		t.Errorf("--help: %q, %v", errs.String(), err)
	}
}

// What cannot be watched keeps the program from being ready, and /ready says what it is.
func TestForbiddenIsNotReady(t *testing.T) {
	a := newAPI(t)
	var allowed atomic.Bool
	a.core.PrependReactor("list", "services", func(clienttesting.Action) (bool, runtime.Object, error) {
		return !allowed.Load(), nil, apierrors.NewForbidden(schema.GroupResource{Resource: "services"}, "", errors.New("no such role"))
	})
	r := a.start()
	await(t, "the reason", func() bool {
		code, text := r.get(r.monitoring, "/ready")
		return code == http.StatusServiceUnavailable && strings.Contains(text, "Service") && strings.Contains(text, "forbidden")
	})
	allowed.Store(true)
	r.awaitReady()
	if code, text := r.get(r.debug, "/debug/statusz"); code != http.StatusOK || strings.TrimSpace(text) != "{}" {
		t.Errorf("/debug/statusz says %d %s although all is well", code, text)
	}
}

// A CA that cannot be had does the same, and is looked for again.
func TestNoCAIsNotReady(t *testing.T) {
	a := newAPI(t)
	secrets := a.core.CoreV1().Secrets(api.DefaultNamespace)
	if _, err := secrets.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: api.DefaultNamespace, Name: api.PluggedCASecret}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	addr := freeAddr(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	cfg, err := parseConfig([]string{"--monitoring-addr=" + addr, "--debug-addr=", "--grpc-addr=127.0.0.1:0", "--drain-delay=0s"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		done <- serve(ctx, cfg, clients{core: a.core, dynamic: a.dynamic, callers: a.core}, slog.New(slog.NewTextHandler(t.Output(), nil)))
	}()
	r := &replica{T: t, monitoring: addr}
	await(t, "the reason", func() bool {
		res, err := http.Get("http://" + addr + "/ready")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		return err == nil && strings.Contains(string(text), "istio-system/cacerts")
	})
	http.DefaultClient.CloseIdleConnections()
	if err := secrets.Delete(t.Context(), api.PluggedCASecret, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r.awaitReady()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("the program ended with: %v", err)
	}
}

// freeAddr is a loopback address that nobody listened on a moment ago.
func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// A port that is taken ends the program with an error that names it.
func TestPortIsTaken(t *testing.T) {
	a := newAPI(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	taken := ln.Addr().String()
	for _, flag := range []string{"--monitoring-addr", "--grpc-addr", "--debug-addr", "--plaintext-addr"} {
		cfg, err := parseConfig([]string{"--monitoring-addr=127.0.0.1:0", "--debug-addr=127.0.0.1:0", "--grpc-addr=127.0.0.1:0", flag + "=" + taken}, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		err = serve(t.Context(), cfg, clients{core: a.core, dynamic: a.dynamic, callers: a.core}, slog.New(slog.DiscardHandler))
		mentions(t, err, taken, "in use")
	}
}
