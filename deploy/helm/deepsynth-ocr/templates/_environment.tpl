{{- define "deepsynth.apiEnvironment" -}}
- {name: DEEPSYNTH_MODEL, value: {{ .Values.model | quote }}}
- {name: DEEPSYNTH_DEVICE, value: {{ ternary "cuda" "cpu" .Values.gpu.enabled }}}
- {name: DEEPSYNTH_LOG_FORMAT, value: json}
- {name: DEEPSYNTH_DEADLINE_S, value: {{ .Values.drain.deadlineSeconds | quote }}}
# preStop waits instead.
- {name: DEEPSYNTH_DRAIN_GRACE_S, value: "0"}
- {name: DEEPSYNTH_ADAPTER_STATE_DIR, value: /var/lib/deepsynth/state/adapters}
- {name: DEEPSYNTH_SAMPLE_DIR, value: /var/lib/deepsynth/state/samples}
{{- if .Values.adapters.enabled }}
- {name: DEEPSYNTH_ADAPTER_DIR, value: /var/lib/deepsynth/adapters}
{{- end }}
{{- if .Values.jobs.enabled }}
- {name: DEEPSYNTH_JOB_DIR, value: /var/lib/deepsynth/state/jobs}
{{- end }}
- {name: DEEPSYNTH_REQUIRE_KEYS, value: {{ .Values.keys.required | quote }}}
{{- if .Values.keys.required }}
- {name: DEEPSYNTH_KEY_FILE, value: /etc/deepsynth/keys/keys.json}
{{- end }}
{{- if .Values.admin.enabled }}
- {name: DEEPSYNTH_ADMIN_PORT, value: {{ .Values.admin.port | quote }}}
{{- end }}
{{- if .Values.tracing.endpoint }}
- {name: DEEPSYNTH_ENABLE_TRACING, value: "true"}
- {name: DEEPSYNTH_OTLP_ENDPOINT, value: {{ .Values.tracing.endpoint | quote }}}
{{- end }}
{{- range $variable, $key := dict "DEEPSYNTH_ADMIN_KEY" "admin-key" "DEEPSYNTH_JOB_WEBHOOK_SECRET" "webhook-secret" "DEEPSYNTH_CASCADE_KEY" "cascade-key" "HF_TOKEN" "hf-token" }}
- name: {{ $variable }}
  valueFrom: {secretKeyRef: {name: {{ $.Values.keys.secretName }}, key: {{ $key }}, optional: true}}
{{- end }}
{{- range $name, $value := .Values.settings }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end -}}
