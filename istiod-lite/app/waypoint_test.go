package app

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clienttesting "k8s.io/client-go/testing"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/resource"
	"github.com/ambit-mesh/ambit/istiod-lite/xds/xdstest"
)

// applies makes the fake API server take what is applied, and note it. What kubelets and controllers would do of it is the test's.
func (a *fakeAPI) applies() (applied func() []string) {
	done := make(chan string, 1000)
	a.dynamic.PrependReactor("patch", "*", func(action clienttesting.Action) (bool, runtime.Object, error) {
		patch := action.(clienttesting.PatchAction)
		if patch.GetPatchType() != types.ApplyPatchType {
			return false, nil, nil
		}
		u := &unstructured.Unstructured{}
		if err := json.Unmarshal(patch.GetPatch(), &u.Object); err != nil {
			return true, nil, err
		}
		err := a.dynamic.Tracker().Update(action.GetResource(), u, action.GetNamespace())
		if apierrors.IsNotFound(err) {
			err = a.dynamic.Tracker().Create(action.GetResource(), u, action.GetNamespace())
		}
		done <- u.GetKind() + " " + u.GetNamespace() + "/" + u.GetName()
		return true, u, err
	})
	var all []string
	return func() []string {
		for {
			select {
			case s := <-done:
				all = append(all, s)
			default:
				return all
			}
		}
	}
}

func (a *fakeAPI) create(gvr schema.GroupVersionResource, text string) {
	a.Helper()
	u := a.parse(text)
	if _, err := a.dynamic.Resource(gvr).Namespace(u.GetNamespace()).Create(a.Context(), u, metav1.CreateOptions{}); err != nil {
		a.Fatal(err)
	}
}

// createStanding makes what the control plane would make by itself: the fake loses what happens between a list and its watch.
func (a *fakeAPI) createStanding() {
	a.Helper()
	a.create(gatewayClassGVR, `{"apiVersion":"gateway.networking.k8s.io/v1","kind":"GatewayClass","metadata":{"name":"istio-waypoint"},"spec":{"controllerName":"istio.io/mesh-controller"}}`)
	a.create(meshGVR, `{"apiVersion":"gateway.networking.x-k8s.io/v1alpha1","kind":"XMesh","metadata":{"name":"ambit"},"spec":{"controllerName":"ambit.io/mesh-controller"}}`)
}

func (a *fakeAPI) parse(text string) *unstructured.Unstructured {
	a.Helper()
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON([]byte(text)); err != nil {
		a.Fatal(err)
	}
	return u
}

// condition is "Status Reason" of a condition somewhere below an object's status.
func (a *fakeAPI) condition(gvr schema.GroupVersionResource, namespace, name, typ string) string {
	a.Helper()
	u, err := a.dynamic.Resource(gvr).Namespace(namespace).Get(a.Context(), name, metav1.GetOptions{})
	if err != nil {
		return err.Error()
	}
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	if parents, ok, _ := unstructured.NestedSlice(u.Object, "status", "parents"); ok && len(parents) > 0 {
		list, _, _ = unstructured.NestedSlice(parents[len(parents)-1].(map[string]any), "conditions")
	}
	for _, v := range list {
		if c := v.(map[string]any); c["type"] == typ {
			return c["status"].(string) + " " + c["reason"].(string)
		}
	}
	return ""
}

func managed(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{api.LabelGatewayManaged: api.GatewayManagedWaypoint, api.LabelGatewayName: name}}
}

func waypointNode(pod, gateway string) *corev3.Node {
	return &corev3.Node{
		Id: "waypoint~10.0.0.9~" + pod + ".shop~shop.svc.cluster.local",
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			"NAME": structpb.NewStringValue(pod), "NAMESPACE": structpb.NewStringValue("shop"), "SERVICE_ACCOUNT": structpb.NewStringValue(gateway),
			"LABELS": structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{api.LabelGatewayName: structpb.NewStringValue(gateway)}}),
		}},
	}
}

// TestWaypoint: the way of a waypoint from its Gateway to the traffic that is sent to it, and back.
func TestWaypoint(t *testing.T) {
	t.Setenv("WAYPOINT_IMAGE", "waypoint:dev")
	waypointPod, ztunnel := pod("shop", "waypoint-1", "waypoint", "node1", "10.1.0.9"), (*corev1.Pod)(nil)
	web := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Labels: map[string]string{api.LabelUseWaypoint: "waypoint"}},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"}, Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}
	a := newAPI(t, web, waypointPod, pod("shop", "web", "web", "node1", "10.1.0.1"))
	a.token("waypoint-1", waypointPod)
	ztunnel = a.ztunnel("node1")
	a.createPod(ztunnel)
	applied := a.applies()
	a.createStanding()
	r := a.start()
	r.awaitReady()
	a.awaitWatch(1, "gateways", "gatewayclasses", "xmeshes", "httproutes", "services", "deployments")
	await(t, "the class to be accepted", func() bool { return a.condition(gatewayClassGVR, "", api.ClassWaypoint, "Accepted") == "True Accepted" })
	await(t, "the XMesh to be accepted", func() bool { return a.condition(meshGVR, "", api.MeshName, "Accepted") == "True Accepted" })

	a.create(gatewayGVR, `{"apiVersion":"gateway.networking.k8s.io/v1","kind":"Gateway","metadata":{"namespace":"shop","name":"waypoint","uid":"g1","generation":1},
		"spec":{"gatewayClassName":"istio-waypoint","listeners":[{"name":"mesh","port":15008,"protocol":"HBONE"}]},
		"status":{"conditions":[{"type":"example.com/Mine","status":"True","reason":"Ours","message":"kept","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}`)
	a.create(httpRouteGVR, `{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"namespace":"shop","name":"web","generation":1},
		"spec":{"parentRefs":[{"group":"","kind":"Service","name":"web","port":80}],"rules":[{"backendRefs":[{"name":"web","port":80}]}]},
		"status":{"parents":[{"parentRef":{"name":"edge"},"controllerName":"example.com/edge","conditions":[]}]}}`)
	await(t, "what is deployed", func() bool { return slices.Contains(applied(), "PodDisruptionBudget shop/waypoint") })
	await(t, "the Gateway to say that it is not ready", func() bool { return a.condition(gatewayGVR, "shop", "waypoint", "Programmed") == "False Pending" })
	await(t, "the route's status", func() bool { return a.condition(httpRouteGVR, "shop", "web", "Accepted") == "True Accepted" })
	if got := a.condition(gatewayGVR, "shop", "waypoint", "example.com/Mine"); got != "True Ours" {
		t.Errorf("another's condition is %q", got)
	}
	route, err := a.dynamic.Resource(httpRouteGVR).Namespace("shop").Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if parents, _, _ := unstructured.NestedSlice(route.Object, "status", "parents"); len(parents) != 2 || parents[0].(map[string]any)["controllerName"] != "example.com/edge" {
		t.Errorf("parents are %v", parents)
	}

	// The waypoint is told what is its own before traffic is sent to it.
	w := xdstest.Open(withToken(t.Context(), "waypoint-1"), t, r.dialTLS(), waypointNode("waypoint-1", "waypoint"))
	for _, typ := range []resource.Type{resource.Cluster, resource.Endpoints, resource.Listener, resource.Routes} {
		w.Subscribe(typ, nil)
	}
	const table = "inbound-vip|80|http|web.shop.svc.cluster.local"
	w.Until("the routes of web", func() bool { return w.Resources[resource.Routes][table] != "" })
	if len(w.Resources[resource.Endpoints]) != 1 || len(w.Resources[resource.Address]) != 0 {
		t.Errorf("the waypoint knows %v", w.Resources)
	}
	proxy := r.subscribe("node1")
	const service = "shop/web.shop.svc.cluster.local"
	before := proxy.Resources[resource.Address][service]
	_, err = a.core.CoreV1().Services("shop").Create(t.Context(), &corev1.Service{ObjectMeta: managed("waypoint"),
		Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.9", ClusterIPs: []string{"10.96.0.9"}, Ports: []corev1.ServicePort{{Name: "mesh", Port: 15008}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	deployment := &appsv1.Deployment{ObjectMeta: managed("waypoint"), Status: appsv1.DeploymentStatus{ReadyReplicas: 1}}
	if _, err = a.core.AppsV1().Deployments("shop").Create(t.Context(), deployment, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	proxy.Until("the service to be bound", func() bool { return proxy.Resources[resource.Address][service] != before })
	await(t, "the Gateway to be ready", func() bool { return a.condition(gatewayGVR, "shop", "waypoint", "Programmed") == "True Programmed" })
	if _, body := r.get(r.debug, "/debug/configz?name="+service); !strings.Contains(body, "waypoint.shop.svc.cluster.local") {
		t.Errorf("node proxies are told\n%s", body)
	}
	if _, body := r.get(r.debug, "/debug/configz?waypoint=shop/waypoint&type=Listener"); !strings.Contains(body, table) {
		t.Errorf("the waypoint is told\n%s", body)
	}

	// A change of the route reaches the waypoint; the Gateway's end un-binds the service and ends the stream.
	version := w.Resources[resource.Routes][table]
	route.SetGeneration(2)
	if err := unstructured.SetNestedSlice(route.Object, []any{map[string]any{"backendRefs": []any{map[string]any{"name": "missing", "port": int64(80)}}}}, "spec", "rules"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.dynamic.Resource(httpRouteGVR).Namespace("shop").Update(t.Context(), route, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.Until("the route's change", func() bool { return w.Resources[resource.Routes][table] != version })
	await(t, "the route's status", func() bool {
		return a.condition(httpRouteGVR, "shop", "web", "ResolvedRefs") == "False BackendNotFound"
	})
	if err := a.dynamic.Resource(gatewayGVR).Namespace("shop").Delete(t.Context(), "waypoint", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	proxy.Until("the service to be free", func() bool { return proxy.Resources[resource.Address][service] == before })
	if code := status.Code(w.Err()); code != codes.Unavailable {
		t.Errorf("the waypoint's stream ended with %s, want %s", code, codes.Unavailable)
	}
}

// TestWaypointIdentity: a waypoint gets its own certificate and its own view by its own token, and nobody else's.
func TestWaypointIdentity(t *testing.T) {
	waypointPod, webPod := pod("shop", "waypoint-1", "waypoint", "node1", "10.1.0.9"), pod("shop", "web", "web", "node1", "10.1.0.1")
	a := newAPI(t, waypointPod, webPod)
	a.token("waypoint-1", waypointPod)
	a.token("web", webPod)
	a.createStanding()
	r := a.start()
	r.awaitReady()
	a.awaitWatch(1, "gateways", "gatewayclasses")
	a.create(gatewayGVR, `{"apiVersion":"gateway.networking.k8s.io/v1","kind":"Gateway","metadata":{"namespace":"shop","name":"waypoint","generation":1},
		"spec":{"gatewayClassName":"istio-waypoint","listeners":[{"name":"mesh","port":15008,"protocol":"HBONE"}]}}`)
	conn := r.dialTLS()
	if _, _, err := r.certificate(conn, "waypoint-1", spiffe("shop", "waypoint")); err != nil {
		t.Errorf("its own certificate: %v", err)
	}
	_, _, err := r.certificate(conn, "waypoint-1", spiffe("shop", "web"))
	mentions(t, err, "shop/waypoint", "may ask for itself only")
	await(t, "the waypoint's view", func() bool {
		_, body := r.get(r.debug, "/debug/configz?waypoint=shop/waypoint")
		return strings.Contains(body, "main_internal")
	})
	own := xdstest.Open(withToken(t.Context(), "waypoint-1"), t, conn, waypointNode("waypoint-1", "waypoint"))
	own.Subscribe(resource.Cluster, nil)
	own.NextAck()
	other := xdstest.Open(withToken(t.Context(), "web"), t, conn, waypointNode("web", "waypoint"))
	other.Subscribe(resource.Cluster, nil)
	mentions(t, other.Err(), "shop/web", "nor that of a waypoint")
}
