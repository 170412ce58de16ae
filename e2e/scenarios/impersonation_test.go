package scenarios

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	securityv1alpha1 "istio.io/api/security/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/deploy/samples/traffic"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

const addressType = "type.googleapis.com/istio.workload.Address"

// impersonation: nobody gets a certificate, a tunnel or the mesh's data under a name that is not theirs. Each kind of attempt is
// first made by somebody who may, so that a refusal is not for another reason.
func impersonation() scenario {
	const ns = "ambit-impersonation"
	return scenario{
		name: "09-impersonation-refused", manifest: "impersonation.yaml", namespaces: []string{ns}, enrolled: []string{ns},
		tell: func(t *testing.T, w *world) {
			c := w.callers(t, ns)
			t.Run("certificates", func(t *testing.T) { w.certificates(t, ns, c) })
			t.Run("xds", func(t *testing.T) { w.xds(t, c) })
			t.Run("tunnels", func(t *testing.T) { w.tunnels(t, ns) })
		},
	}
}

// callers are the tokens that the attempts are made with.
type callers struct {
	proxy          *corev1.Pod // node1's node proxy
	proxyToken     string
	unbound        string // of the same account, bound to no pod
	otherAudience  string
	otherAccount   string // of an application's pod
	deletedPod     string // of the node proxy's account, bound to a pod that was there
	deletedPodName string
}

func (w *world) callers(t *testing.T, ns string) callers {
	t.Helper()
	proxy, err := w.PodOn(w.ctx, "node1", api.DefaultNamespace, harness.Ztunnel().Selector())
	w.must(t, err)
	app, err := w.Get(w.ctx, harness.Pod{Namespace: ns, Name: "node1only"})
	w.must(t, err)
	none := int64(0)
	gone, err := w.Kube.CoreV1().Pods(api.DefaultNamespace).Create(w.ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "impostor-", Namespace: api.DefaultNamespace},
		Spec: corev1.PodSpec{
			ServiceAccountName: api.NodeProxy, NodeName: "node1", TerminationGracePeriodSeconds: &none,
			Containers: []corev1.Container{{Name: "main", Image: "docker.io/ambit/samples:dev", ImagePullPolicy: corev1.PullNever, Command: []string{"/usr/local/bin/traffic", "serve"}}},
		},
	}, metav1.CreateOptions{})
	w.must(t, err)
	c := callers{
		proxy:          proxy,
		proxyToken:     w.token(t, api.DefaultNamespace, api.NodeProxy, api.TokenAudience, proxy),
		unbound:        w.token(t, api.DefaultNamespace, api.NodeProxy, api.TokenAudience, nil),
		otherAudience:  w.token(t, api.DefaultNamespace, api.NodeProxy, "somebody-else", proxy),
		otherAccount:   w.token(t, ns, "node1only", api.TokenAudience, app),
		deletedPod:     w.token(t, api.DefaultNamespace, api.NodeProxy, api.TokenAudience, gone),
		deletedPodName: gone.Name,
	}
	w.must(t, w.Kube.CoreV1().Pods(gone.Namespace).Delete(w.ctx, gone.Name, metav1.DeleteOptions{GracePeriodSeconds: &none}))
	w.must(t, harness.Await(w.ctx, harness.Until{What: "impostor gone", Within: converged}, func(ctx context.Context) error {
		if _, err := w.Get(ctx, harness.Pod{Namespace: gone.Namespace, Name: gone.Name}); err == nil {
			return errors.New("it is still there")
		}
		return nil
	}))
	return c
}

// control connects to the control plane from node1, as the node proxy does, and verifies it.
func (w *world) control(t *testing.T) *grpc.ClientConn {
	t.Helper()
	node, err := w.Node("node1")
	w.must(t, err)
	bundle, err := w.Kube.CoreV1().ConfigMaps(api.DefaultNamespace).Get(w.ctx, api.RootCertConfigMap, metav1.GetOptions{})
	w.must(t, err)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(bundle.Data[api.RootCertKey])) {
		t.Fatalf("ConfigMap %s has no certificate", api.RootCertConfigMap)
	}
	addr := target(w.clusterIPs(t, api.DefaultNamespace, api.ControlPlaneService)[0], api.PortControlPlane)
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return node.DialContext(ctx, "tcp", addr) }),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			RootCAs: roots, ServerName: api.ControlPlaneService + "." + api.DefaultNamespace + ".svc",
		})))
	w.must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

func (w *world) withToken(token string) context.Context {
	pairs := []string{"clusterid", api.DefaultClusterID}
	if token != "" {
		pairs = append(pairs, "authorization", "Bearer "+token)
	}
	return metadata.AppendToOutgoingContext(w.ctx, pairs...)
}

// denied tells whether a call was refused for who made it.
func denied(err error) bool {
	code := status.Code(err)
	return code == codes.Unauthenticated || code == codes.PermissionDenied
}

func (w *world) certificates(t *testing.T, ns string, c callers) {
	client := securityv1alpha1.NewIstioCertificateServiceClient(w.control(t))
	name := func(account string) string { return fmt.Sprintf("spiffe://cluster.local/ns/%s/sa/%s", ns, account) }
	for _, attempt := range []struct {
		what, token, identity string
		granted               bool
	}{
		{"the node's proxy, for an account of a pod there", c.proxyToken, name("node1only"), true},
		{"the node's proxy, for an account whose pods are on another node", c.proxyToken, name("node2only"), false},
		{"the node's proxy, for an account that does not exist", c.proxyToken, name("nobody"), false},
		{"the node's proxy, for another trust domain", c.proxyToken, "spiffe://elsewhere/ns/" + ns + "/sa/node1only", false},
		{"the proxy's account, bound to no pod", c.unbound, name("node1only"), false},
		{"the proxy's account, for another audience", c.otherAudience, name("node1only"), false},
		{"the proxy's account, bound to a pod that is gone", c.deletedPod, name("node1only"), false},
		{"an application's account, for its node-mate", c.otherAccount, name("node2only"), false},
		{"nobody", "", name("node1only"), false},
	} {
		impersonate, err := structpb.NewStruct(map[string]any{"ImpersonatedIdentity": attempt.identity})
		w.must(t, err)
		answer, err := client.CreateCertificate(w.withToken(attempt.token), &securityv1alpha1.IstioCertificateRequest{
			Csr: csr(t, attempt.identity), ValidityDuration: 3600, Metadata: impersonate,
		})
		switch {
		case attempt.granted && err != nil:
			t.Errorf("certificate for %s: %v", attempt.what, err)
		case attempt.granted:
			block, _ := pem.Decode([]byte(answer.CertChain[0]))
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil || len(cert.URIs) != 1 || cert.URIs[0].String() != attempt.identity {
				t.Errorf("certificate for %s: for %v, %v", attempt.what, cert.URIs, err)
			}
		case err == nil:
			t.Errorf("certificate for %s: granted, want it refused", attempt.what)
		case !denied(err):
			t.Errorf("certificate for %s: %v, want Unauthenticated or PermissionDenied", attempt.what, err)
		}
	}
}

func (w *world) xds(t *testing.T, c callers) {
	client := discoveryv3.NewAggregatedDiscoveryServiceClient(w.control(t))
	for _, attempt := range []struct {
		what, token, pod string
		granted          bool
	}{
		{"the node's proxy", c.proxyToken, c.proxy.Name, true},
		{"nobody", "", c.proxy.Name, false},
		{"an application's account in the proxy's name", c.otherAccount, c.proxy.Name, false},
		{"a pod that is gone", c.deletedPod, c.deletedPodName, false},
		{"a pod that is gone, in the proxy's name", c.deletedPod, c.proxy.Name, false},
		{"another audience", c.otherAudience, c.proxy.Name, false},
		{"no token that was ever one", "rubbish", c.proxy.Name, false},
	} {
		n, err := subscribe(w.withToken(attempt.token), client, attempt.pod)
		switch {
		case attempt.granted && (err != nil || n == 0):
			t.Errorf("xDS for %s: %d addresses, %v", attempt.what, n, err)
		case !attempt.granted && err == nil:
			t.Errorf("xDS for %s: %d addresses, want it refused", attempt.what, n)
		case !attempt.granted && !denied(err):
			t.Errorf("xDS for %s: %v, want Unauthenticated or PermissionDenied", attempt.what, err)
		}
	}
	// An application's account in its own name is not lied to: it is told nothing, or that it may not.
	if n, err := subscribeAs(w.withToken(c.otherAccount), client, "node1only", "ambit-impersonation"); err == nil && n > 0 {
		t.Errorf("xDS for an application's account in its own name: %d addresses, want none", n)
	}
}

func subscribe(ctx context.Context, client discoveryv3.AggregatedDiscoveryServiceClient, pod string) (int, error) {
	return subscribeAs(ctx, client, pod, api.DefaultNamespace)
}

// subscribeAs asks for all addresses in the name of a pod, and returns how many the first answer has.
func subscribeAs(ctx context.Context, client discoveryv3.AggregatedDiscoveryServiceClient, pod, ns string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	stream, err := client.DeltaAggregatedResources(ctx)
	if err != nil {
		return 0, err
	}
	meta, err := structpb.NewStruct(map[string]any{"NAME": pod, "NAMESPACE": ns, "NODE_NAME": "node1", "CLUSTER_ID": api.DefaultClusterID})
	if err != nil {
		return 0, err
	}
	err = stream.Send(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: addressType,
		Node:    &corev3.Node{Id: fmt.Sprintf("ztunnel~10.0.0.1~%s.%s~%s.svc.cluster.local", pod, ns, ns), Metadata: meta},
	})
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	answer, err := stream.Recv()
	if err != nil {
		return 0, err
	}
	return len(answer.Resources), nil
}

func (w *world) tunnels(t *testing.T, ns string) {
	mesh := w.meshAuthority(t)
	victim := w.ips(t, harness.Pod{Namespace: ns, Name: "node1only"})[0].String()
	other := w.ips(t, harness.Pod{Namespace: ns, Name: "node2only"})[0].String()
	agent, err := w.PodOn(w.ctx, "node2", api.DefaultNamespace, harness.Agent().Selector())
	w.must(t, err)
	from, err := w.Inside(w.ctx, harness.Pod{Namespace: agent.Namespace, Name: agent.Name})
	w.must(t, err)
	name := fmt.Sprintf("spiffe://cluster.local/ns/%s/sa/node2only", ns)
	right := mesh.issue(t, name)
	addr := target(victim, api.PortHBONE)
	for _, a := range []struct {
		what      string
		cert      *tls.Certificate
		authority string
		status    int // zero: refused before there is one
	}{
		{"with a right certificate, to the pod's own address", right, target(victim, traffic.PortEcho), http.StatusOK},
		{"with a certificate of another trust domain", mesh.issue(t, strings.Replace(name, "cluster.local", "elsewhere", 1)), target(victim, traffic.PortEcho), 0},
		{"with a certificate of another authority", foreignAuthority(t).issue(t, name), target(victim, traffic.PortEcho), 0},
		{"with a certificate that names nobody", mesh.issue(t, "https://example.com/"), target(victim, traffic.PortEcho), 0},
		{"without a certificate", nil, target(victim, traffic.PortEcho), 0},
		{"to another pod's address", right, target(other, traffic.PortEcho), http.StatusBadRequest},
		{"to the loopback address", right, target("127.0.0.1", traffic.PortEcho), http.StatusBadRequest},
		{"to an address outside", right, "192.0.2.1:80", http.StatusBadRequest},
	} {
		line := traffic.Marker + " tunnel\n"
		status, back, err := attempt(w.ctx, from, addr, a.cert, a.authority, line)
		switch {
		case a.status == http.StatusOK && (status != a.status || back != line):
			t.Errorf("CONNECT %s: status %d, %q came back, %v; want it to work", a.what, status, back, err)
		case a.status == 0 && !errors.Is(err, errNoTunnel):
			t.Errorf("CONNECT %s: status %d, %v; want the connection refused", a.what, status, err)
		case a.status != status:
			t.Errorf("CONNECT %s: status %d, %v; want %d", a.what, status, err, a.status)
		}
	}
	// The proxy's own ports are not to be reached through it.
	for _, port := range []int{api.PortHBONE, api.PortInbound, api.PortOutbound} {
		if status, _, err := attempt(w.ctx, from, addr, right, target(victim, port), "x\n"); status == http.StatusOK {
			t.Errorf("CONNECT to the pod's own port %d: status %d, %v; want it refused", port, status, err)
		}
	}
}
