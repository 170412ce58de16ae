package app

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/ambit-mesh/ambit/api"
)

// reconcile does at once what controllers, kubelets and the control plane would do some time after an object was written.
// An image with "broken" in its name never becomes ready.
func (f *fakeAPI) reconcile(k kind, namespace string, o object) {
	switch k.name {
	case "Deployment":
		replicas, _ := spec(o)["replicas"].(float64)
		f.runPods(namespace, o, make([]string, int(replicas)))
	case "DaemonSet":
		var nodes []string
		for _, name := range slices.Sorted(maps.Keys(f.objects["nodes"])) {
			nodes = append(nodes, strings.TrimPrefix(name, "/"))
		}
		f.runPods(namespace, o, nodes)
	case "CustomResourceDefinition":
		o["status"] = object{"conditions": []any{object{"type": "Established", "status": "True"}}}
	case "Gateway":
		if spec(o)["gatewayClassName"] == api.ClassWaypoint {
			f.waypoint(namespace, o)
		}
	case "Service":
		name := str(meta(o), "name")
		f.store(kindOf("endpointslices"), namespace, object{
			"metadata":  object{"name": name, "labels": object{"kubernetes.io/service-name": name}},
			"endpoints": []any{object{"addresses": []any{"10.0.0.1"}, "conditions": object{"ready": true}}},
		})
	}
	if k.name == "Deployment" && str(meta(o), "name") == api.ControlPlaneDeployment {
		f.controlPlane(namespace)
	}
}

// waypoint does for a Gateway what the control plane does: a Deployment, and a condition. What is named "broken" does not become ready.
func (f *fakeAPI) waypoint(namespace string, o object) {
	name := str(meta(o), "name")
	image, build := "ambit/waypoint", ""
	for _, d := range f.objects["deployments"] {
		if str(meta(d), "name") != api.ControlPlaneDeployment {
			continue
		}
		containers, _ := spec(spec(d)["template"].(object))["containers"].([]any)
		env, _ := containers[0].(object)["env"].([]any)
		for _, e := range env {
			switch e := e.(object); e["name"] {
			case "WAYPOINT_IMAGE":
				image = str(e, "value")
			case "WAYPOINT_BUILD":
				build = str(e, "value")
			}
		}
	}
	condition := object{"type": "Programmed", "status": "True", "reason": "Programmed", "message": "2 of 2 pods are ready",
		"observedGeneration": meta(o)["generation"], "lastTransitionTime": "2026-01-01T00:00:00Z"}
	if strings.Contains(name, "broken") {
		image += "-broken"
		condition["status"], condition["reason"], condition["message"] = "False", "Pending", "0 of 2 pods are ready"
	}
	f.store(kindOf("deployments"), namespace, object{
		"metadata": object{
			"name": name, "labels": object{api.LabelGatewayName: name, api.LabelGatewayManaged: api.GatewayManagedWaypoint},
			"managedFields": []any{object{"manager": api.GatewayDeployer, "operation": "Apply", "apiVersion": "apps/v1"}},
		},
		"spec": object{"replicas": 2.0, "selector": object{"matchLabels": object{api.LabelGatewayName: name}}, "template": object{
			"metadata": object{"labels": object{api.LabelGatewayName: name}, "annotations": object{"ambit.io/build": build}},
			"spec":     object{"serviceAccountName": name, "containers": []any{object{"name": "waypoint", "image": image}}},
		}},
	})
	o["status"] = object{"conditions": []any{condition}, "addresses": []any{object{"type": "Hostname", "value": name + "." + namespace + ".svc"}}}
}

func spec(o object) object { m, _ := o["spec"].(object); return m }

// runPods makes the pods of a Deployment or DaemonSet and writes its status. Those whose template changed are replaced; a
// DaemonSet whose new pods do not become ready stops after the first node.
func (f *fakeAPI) runPods(namespace string, o object, nodes []string) {
	name, template := str(meta(o), "name"), spec(o)["template"].(object)
	image := spec(template)["containers"].([]any)[0].(object)["image"].(string)
	broken := strings.Contains(image, "broken")
	ready := 0
	for i, node := range nodes {
		podName := fmt.Sprintf("%s-%d", name, i)
		old := f.objects["pods"][key(namespace, podName)]
		if broken && old != nil && i > 0 {
			continue // the rollout waits for the first one
		}
		pod := object{"metadata": merge(meta(template), object{"name": podName}), "spec": merge(spec(template), object{"nodeName": node})}
		status := object{"phase": "Running", "conditions": []any{object{"type": "Ready", "status": "True"}}}
		if broken {
			waiting := object{"waiting": object{"reason": "ErrImageNeverPull", "message": "image " + image + " is not on the node"}}
			status = object{"phase": "Pending", "conditions": []any{object{"type": "Ready", "status": "False"}},
				"containerStatuses": []any{object{"name": "c", "state": waiting}}}
		} else {
			ready++
		}
		pod["status"] = status
		f.store(kindOf("pods"), namespace, pod)
	}
	updated := ready
	if broken {
		updated = min(1, len(nodes))
	}
	o["status"] = object{
		"observedGeneration": meta(o)["generation"],
		"replicas":           len(nodes), "updatedReplicas": updated, "availableReplicas": ready,
		"desiredNumberScheduled": len(nodes), "updatedNumberScheduled": updated, "numberAvailable": ready,
	}
}

// controlPlane writes what the control plane writes.
func (f *fakeAPI) controlPlane(namespace string) {
	ours := object{api.LabelPartOf: api.PartOf}
	for _, ns := range f.objects["namespaces"] {
		f.store(kindOf("configmaps"), str(meta(ns), "name"), object{
			"metadata": object{"name": api.RootCertConfigMap, "labels": ours}, "data": object{api.RootCertKey: f.bundle},
		})
	}
	for _, gateway := range f.objects["gateways"] {
		if spec(gateway)["gatewayClassName"] == api.ClassWaypoint {
			f.waypoint(str(meta(gateway), "namespace"), gateway)
		}
	}
	f.store(kindOf("secrets"), namespace, object{"metadata": object{"name": api.CASecret, "labels": ours}})
	f.store(kindOf("leases"), namespace, object{"metadata": object{"name": "istiod-lite-leader"}})
}

// deleted does what follows a deletion.
func (f *fakeAPI) deleted(k kind, namespace string, o object) {
	name := str(meta(o), "name")
	switch k.name {
	case "Deployment", "DaemonSet":
		for podKey, pod := range f.objects["pods"] {
			owner := str(meta(pod), "name")
			if str(meta(pod), "namespace") == namespace && owner[:strings.LastIndex(owner, "-")] == name {
				delete(f.objects["pods"], podKey)
			}
		}
	case "Service":
		delete(f.objects["endpointslices"], key(namespace, name))
	case "Namespace":
		for _, objects := range f.objects {
			for objectKey, o := range objects {
				if str(meta(o), "namespace") == name {
					delete(objects, objectKey)
				}
			}
		}
	}
}

// portForward answers HTTP requests to an agent's pod. It speaks SPDY only, so the client's fallback is tested too.
func (f *fakeAPI) portForward(w http.ResponseWriter, req *http.Request, r request) {
	if !httpstream.IsUpgradeRequest(req) || !strings.EqualFold(req.Header.Get("Upgrade"), "SPDY/3.1") {
		fail(w, http.StatusBadRequest, "BadRequest", "SPDY only")
		return
	}
	if _, err := httpstream.Handshake(req, w, []string{"portforward.k8s.io"}); err != nil {
		return
	}
	streams := make(chan httpstream.Stream, 2)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, req, func(s httpstream.Stream, _ <-chan struct{}) error {
		streams <- s
		return nil
	})
	if conn == nil {
		return
	}
	defer conn.Close()
	for {
		select {
		case <-conn.CloseChan():
			return
		case s := <-streams:
			if s.Headers().Get(corev1.StreamType) == corev1.StreamTypeData {
				f.agent(s, r)
			}
			s.Close()
		}
	}
}

// agent answers one request as the agent of a pod.
func (f *fakeAPI) agent(s io.ReadWriter, r request) {
	req, err := http.ReadRequest(bufio.NewReader(s))
	if err != nil {
		return
	}
	code, body := http.StatusOK, ""
	switch req.URL.Path {
	case "/release":
		body = f.report(r)
	case "/config_dump", "/logging":
		code, body = f.nodeProxy(req, r)
	}
	if body == "" {
		code, body = http.StatusNotFound, "not found"
	}
	resp := http.Response{StatusCode: code, ProtoMajor: 1, ProtoMinor: 1, ContentLength: int64(len(body)), Body: io.NopCloser(strings.NewReader(body))}
	resp.Write(s)
}

// nodeProxy answers as the admin endpoint of a node proxy.
func (f *fakeAPI) nodeProxy(req *http.Request, r request) (code int, body string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	node := str(spec(f.objects["pods"][key(r.namespace, r.name)]), "nodeName")
	if req.URL.Path == "/config_dump" {
		return http.StatusOK, cmp.Or(f.dumps[r.name], f.dumps[node])
	}
	query := req.URL.Query()
	switch level := query.Get("level"); {
	case req.Method != http.MethodPost:
		return http.StatusMethodNotAllowed, "Invalid HTTP method"
	case strings.HasPrefix(level, "nobody="):
		return http.StatusBadRequest, "there is no target nobody"
	case level != "":
		f.levels[node] = level
	case query.Has("reset"):
		delete(f.levels, node)
	}
	return http.StatusOK, "current log level is " + cmp.Or(f.levels[node], "info") + "\n"
}

// report is the next report of the agent in a pod. Before it is told to let go, an agent serves.
func (f *fakeAPI) report(r request) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	pod := f.objects["pods"][key(r.namespace, r.name)]
	if pod == nil {
		return ""
	}
	node := str(spec(pod), "nodeName")
	queue := f.reports[node]
	if len(queue) == 0 {
		return ""
	}
	var order string
	for _, ds := range f.objects["daemonsets"] {
		if str(meta(ds), "name") == api.NodeAgent {
			order = stringMap(meta(ds)["annotations"])["ambit/release"]
		}
	}
	if order == "" {
		return fmt.Sprintf(`{"node":%q,"phase":"serving"}`, node)
	}
	if len(queue) > 1 {
		f.reports[node] = queue[1:]
	}
	text := queue[0]
	if order == "now" { // ends what drains
		text = "clean 0 0"
	}
	var phase string
	var pods, connections int
	fmt.Sscan(text, &phase, &pods, &connections)
	return fmt.Sprintf(`{"node":%q,"phase":%q,"pods":%d,"connections":%d}`, node, phase, pods, connections)
}
