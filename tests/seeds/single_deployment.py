from ray import serve
from ray.serve.deployment import Application

@serve.deployment
class MyPipeline:
    def __init__(self):
        # Load model or other resources here
        print("Pipeline initialized.")

    def preprocess(self, data):
        return data.upper()

    def infer(self, processed_data):
        return f"Model processed: {processed_data}"

    def postprocess(self, model_result):
        return f"Final output: {model_result.replace('Model processed:', 'Inferred result:')}"

    def __call__(self, request):
        data = request.json()["data"]
        preprocessed = self.preprocess(data)
        inferred = self.infer(preprocessed)
        final = self.postprocess(inferred)
        return final

# Deploy the single deployment that contains the entire pipeline logic
serve.run(MyPipeline.bind())
